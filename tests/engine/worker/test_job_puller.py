"""How many jobs a worker takes at once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engine.remote.pictures import Verdicts
from engine.remote.worker import RemoteEngine
from engine.worker.intake import JobPuller
from engine.worker.run import ActiveRuns
from shared.bus_harness import make_job


class FullQueue:
    """`pulled`: how many jobs were taken; after ten it sets `has_ended` and gives no more."""

    def __init__(self) -> None:
        self.pulled = 0
        self.has_ended = asyncio.Event()

    async def pull_job(self, pools: object, seconds: float, *, wait: bool) -> Any:
        if self.pulled == 10:
            self.has_ended.set()
            await asyncio.Event().wait()
        self.pulled += 1
        return type("Delivery", (), {"value": make_job(f"{self.pulled:032x}")})()


class SlowIntake:
    """It never finishes to claim a job."""

    async def accept(self, delivery: object) -> None:
        await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_jobs_that_are_being_claimed_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = Verdicts()
    queue = FullQueue()

    async def pause(seconds: float) -> None:
        queue.has_ended.set()
        await asyncio.Event().wait()

    active_runs = ActiveRuns(RemoteEngine(), verdicts)
    puller = JobPuller(
        cast(Any, queue),
        active_runs,
        cast(Any, SlowIntake()),
        ("default",),
        lambda: 8,
        lambda: None,
        "comfy",
        lambda: 2,
    )
    monkeypatch.setattr("engine.worker.intake.asyncio.sleep", pause)
    pulling = asyncio.create_task(puller.pull_regularly())
    await queue.has_ended.wait()  # or it waits for room
    assert queue.pulled == 2
    assert puller.free_rows == 0
    pulling.cancel()
    await asyncio.gather(pulling, return_exceptions=True)
    await active_runs.close()
    verdicts.close()
