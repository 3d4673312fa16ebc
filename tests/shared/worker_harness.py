"""Shared by the worker's tests: a broker, the bot's end of the bus, and as many workers as a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

from engine.bus import Bus, BusLimits
from engine.bus.broker.embedded import Broker
from engine.contract import BillingKey, Concept, Job, JobCancelled, JobFailed, JobFinished, JobStarted, Recipe
from engine.core.engine import Engine
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from engine.output.upscaler import Upscaler
from engine.worker.local_run import run_locally
from engine.worker.watchdog import Watchdog
from engine.worker.worker import Worker
from engine.worker.worker_profile import WorkerProfile

LEASE = 2.0
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
LONG = 400


def a_job(job: str = JOB, *, attempt: int = 1, ladder: bool = False, **recipe: Any) -> Job:
    """One small picture: a single row of the network."""
    defaults: dict[str, Any] = {
        "concepts": (Concept("a red apple"),), "model": "embedded", "sampler": "ddim", "steps": 4, "seed": 7,
        "guidance": 1.0, "width": 64, "height": 64, "count": 1, "dtype": "float32", "bucket": 1,
    }  # fmt: skip
    share = BillingKey("standard", "guild", "ann")
    task = Recipe(**{**defaults, **recipe})
    return Job(id=job, task=task, share=share, cost=8.0, deadline=2e9, attempt=attempt, ladder=ladder)


class Slowly:
    """A family whose steps take at least `seconds`, so that a test can look at a job before it ends."""

    def __init__(self, family: Family, seconds: float = 0.02) -> None:
        self._family, self._seconds = family, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, *arguments: Any) -> Any:
        time.sleep(self._seconds)
        return self._family.denoise(*arguments)


class Shop:
    """A broker, the bot's end of the bus, and as many workers as a test wants."""

    def __init__(self, broker: Broker, loaded: dict[str, Family], lane: DecodeWorker, lease: float) -> None:
        self.broker, self.loaded, self.lane, self.lease = broker, loaded, lane, lease
        self.buses: list[Bus] = []
        self.running: list[tuple[Worker, asyncio.Task[None]]] = []
        self.bot: Bus

    async def join(self) -> Bus:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=self.lease))
        self.buses.append(bus)
        await bus.declare()
        return bus

    async def worker(
        self, name: str = "one", pulse: Watchdog | None = None, upscaler: Upscaler | None = None
    ) -> tuple[Worker, asyncio.Task[None]]:
        offer = WorkerProfile(name, "cpu", rows=8)
        engine, pulse = Engine(self.loaded, rows=8), pulse or Watchdog()
        worker = Worker(await self.join(), engine, self.lane, offer, pulse, upscaler)
        task = asyncio.create_task(worker.run())
        self.running.append((worker, task))
        return worker, task

    def steps(self, seconds: float) -> int:
        """How many steps of `a_job` take about `seconds` on this machine at its present load."""
        begin = time.monotonic()
        run_locally(a_job(steps=10), self.loaded)
        return min(1000, max(20, int(seconds / (time.monotonic() - begin) * 10)))

    async def results(self, job: str = JOB, seconds: float = 120.0) -> list[Any]:
        """Acknowledges and returns all results of a job up to its end."""
        found: list[Any] = []
        source = self.bot.consume_results()
        async with asyncio.timeout(seconds):
            async for delivered in source:
                await delivered.ack()
                if delivered.value.job == job:
                    found.append(delivered.value)
                if delivered.value.job == job and isinstance(delivered.value, JobFinished | JobFailed | JobCancelled):
                    break
        await close(source)
        return found

    async def started(self, job: str = JOB) -> Any:
        source = self.bot.consume_results()
        async with asyncio.timeout(60):
            async for delivered in source:
                await delivered.ack()
                if delivered.value.job == job and isinstance(delivered.value, JobStarted):
                    await close(source)
                    return delivered.value
        raise AssertionError("it never started")

    async def left(self, stream: str) -> int:
        return (await self.bot.js.stream_info(stream)).state.messages


async def close(source: Any) -> None:
    await source.aclose()


async def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


async def midway(worker: Worker, least: int = 3) -> Any:
    """Waits until the worker's one run has made `least` steps, and returns it."""
    await until(lambda: any(min(run.steps_done.values()) >= least for run in worker.active_runs))
    return next(iter(worker.active_runs))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def uninterrupted(shop: Shop, job: Job) -> list[str]:
    """The hashes of the pictures that the same job gives without a broker."""
    result = await asyncio.to_thread(run_locally, job, shop.loaded)
    return [sha(picture) for picture in result.pictures]
