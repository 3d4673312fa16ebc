"""Shared by the worker's tests: a broker, the bot's end of the bus, and as many workers as a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

from engine.bus import Bus, BusLimits
from engine.bus.broker.embedded import Broker
from engine.contract import (
    BillingKey,
    Concept,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobStarted,
    PictureReady,
    Recipe,
)
from engine.core.engine import Engine
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from engine.output.upscaler import Upscaler
from engine.worker.local_run import run_locally
from engine.worker.watchdog import Watchdog
from engine.worker.worker import Worker
from engine.worker.worker_profile import WorkerProfile
from shared.init_image_jobs import Blobs

LEASE = 2.0
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
LONG_STEPS = 400


def make_job(job: str = JOB, *, attempt: int = 1, ladder: bool = False, **recipe: Any) -> Job:
    """One small picture: a single row of the network."""
    defaults: dict[str, Any] = {
        "concepts": (Concept("a red apple"),), "model": "embedded", "sampler": "ddim", "steps": 4, "seed": 7,
        "guidance": 1.0, "width": 64, "height": 64, "count": 1, "dtype": "float32", "bucket": 1,
    }  # fmt: skip
    share = BillingKey("standard", "guild", "ann")
    task = Recipe(**{**defaults, **recipe})
    return Job(id=job, task=task, billing_key=share, cost=8.0, deadline=2e9, attempt=attempt, ladder=ladder)


class SlowFamily:
    """A family whose steps take at least `seconds`, so that a test can look at a job before it ends."""

    def __init__(self, family: Family, seconds: float = 0.02) -> None:
        self._family, self._seconds = family, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, *arguments: Any) -> Any:
        time.sleep(self._seconds)
        return self._family.denoise(*arguments)


class WorkerHarness:
    """A broker, the bot's end of the bus, and as many workers as a test wants."""

    def __init__(self, broker: Broker, families: dict[str, Family], decode_worker: DecodeWorker, lease: float) -> None:
        self.broker, self.families, self.decode_worker, self.lease = broker, families, decode_worker, lease
        self.buses: list[Bus] = []
        self.started_workers: list[tuple[Worker, asyncio.Task[None]]] = []
        self.bot: Bus

    async def connect(self) -> Bus:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=self.lease))
        self.buses.append(bus)
        await bus.declare()
        return bus

    async def start_worker(
        self, name: str = "one", watchdog: Watchdog | None = None, upscaler: Upscaler | None = None
    ) -> tuple[Worker, asyncio.Task[None]]:
        profile = WorkerProfile(name, "cpu", rows=8)
        engine, watchdog = Engine(self.families, rows=8), watchdog or Watchdog()
        worker = Worker(await self.connect(), engine, self.decode_worker, profile, watchdog, upscaler)
        task = asyncio.create_task(worker.run())
        self.started_workers.append((worker, task))
        return worker, task

    def count_steps(self, seconds: float) -> int:
        """Counts the steps of `make_job` that take about `seconds` on this machine at its present load."""
        started_at = time.monotonic()
        run_locally(make_job(steps=10), self.families)
        return min(1000, max(20, int(seconds / (time.monotonic() - started_at) * 10)))

    async def collect_results(self, job: str = JOB, seconds: float = 120.0) -> list[Any]:
        """Acknowledges and returns all results of a job up to its end."""
        results: list[Any] = []
        stream = self.bot.consume_results()
        async with asyncio.timeout(seconds):
            async for delivered in stream:
                await delivered.ack()
                if delivered.value.job == job:
                    results.append(delivered.value)
                if delivered.value.job == job and isinstance(delivered.value, JobFinished | JobFailed | JobCancelled):
                    break
        await close_stream(stream)
        return results

    async def wait_for_start(self, job: str = JOB) -> Any:
        stream = self.bot.consume_results()
        async with asyncio.timeout(60):
            async for delivered in stream:
                await delivered.ack()
                if delivered.value.job == job and isinstance(delivered.value, JobStarted):
                    await close_stream(stream)
                    return delivered.value
        raise AssertionError("it never started")

    async def count_messages(self, stream: str) -> int:
        return (await self.bot.js.stream_info(stream)).state.messages


async def close_stream(stream: Any) -> None:
    await stream.aclose()


async def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def wait_until_midway(worker: Worker, min_steps: int = 3) -> Any:
    """Waits until the worker's one run has made `min_steps` steps, and returns it."""
    await wait_until(lambda: any(min(run.steps_done.values()) >= min_steps for run in worker.active_runs))
    return next(iter(worker.active_runs))


def hash_content(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def hash_local_pictures(harness: WorkerHarness, job: Job) -> list[str]:
    """Runs the job without a broker; returns the hashes of its pictures."""
    result = await asyncio.to_thread(run_locally, job, harness.families)
    return [hash_content(picture) for picture in result.pictures]


async def put_blobs(harness: WorkerHarness, blobs: Blobs) -> None:
    for name, content in blobs.items():
        assert await harness.bot.put_blob(content) == name


async def draw_hashes(harness: WorkerHarness, job: Any, blobs: Blobs) -> list[str]:
    result = await asyncio.to_thread(run_locally, job, harness.families, blobs)
    return [hash_content(picture) for picture in result.pictures]


def picture_hashes(results: list[Any], kind: str = "image") -> list[str]:
    pictures = [value for value in results if isinstance(value, PictureReady) and value.kind == kind]
    return [value.sha256 for value in sorted(pictures, key=lambda value: value.image)]
