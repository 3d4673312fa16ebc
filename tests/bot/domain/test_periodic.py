"""Rounds repeat at an interval; an outage ends its round only, a bug ends the loop."""

from __future__ import annotations

import asyncio
import logging

import pytest

from bot.domain import concurrency
from bot.domain.concurrency import run_periodically

pytestmark = pytest.mark.asyncio
log = logging.getLogger(__name__)


class Rounds:
    """Work that fails as told; the log of rounds and pauses replaces the clock. The fourth pause is cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> None:
        self._errors = list(errors)
        self.entries = list[str | float]()
        monkeypatch.setattr(concurrency.asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.entries.append(seconds)
        if self.entries.count(seconds) == 4:
            raise asyncio.CancelledError

    async def work(self) -> None:
        self.entries.append("round")
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error


async def test_an_outage_is_logged_and_the_next_round_comes_after_the_interval(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(monkeypatch, OSError("the disk is full"), ConnectionError("the database is away"))
    with pytest.raises(asyncio.CancelledError):
        await run_periodically(rounds.work, 7.0, "sweep", log)
    assert rounds.entries == ["round", 7.0] * 4
    assert [record.getMessage() for record in caplog.records] == [
        "sweep: the disk is full",
        "sweep: the database is away",
    ]
    assert {(record.name, record.levelname) for record in caplog.records} == {(__name__, "WARNING")}


async def test_the_first_round_may_come_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        await run_periodically(rounds.work, 7.0, "sweep", log, pauses_first=True)
    assert rounds.entries == [7.0, "round"] * 3 + [7.0]


async def test_a_bug_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, None, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await run_periodically(rounds.work, 7.0, "sweep", log)
    assert rounds.entries == ["round", 7.0, "round"]


async def test_cancellation_ends_a_round_that_runs() -> None:
    started = asyncio.Event()

    async def wait_for_ever() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run_periodically(wait_for_ever, 7.0, "sweep", log))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
