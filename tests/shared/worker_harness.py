"""Shared by the worker's tests: a broker, the bot's end of the bus, and as many workers as a test wants."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from engine.batching.engine import Engine
from engine.bus.embedded_broker import Broker
from engine.contract import Job, ModelProfile
from engine.model_cache.cache import ModelCache, ModelEntry
from engine.model_cache.loaded_models import LoadedModels
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from engine.output.upscaler import Upscaler
from engine.worker.local_run import run_locally
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog, WorkerProfile
from shared.bus_harness import (
    JOB,
    LEASE,
    LONG_STEPS,
    OTHER_JOB,
    BusHarness,
    close_stream,
    hash_content,
    make_job,
    picture_hashes,
)
from shared.clock import wait_until
from shared.init_image_jobs import Blobs

__all__ = [
    "JOB",
    "LEASE",
    "LONG_STEPS",
    "OTHER_JOB",
    "SlowFamily",
    "WorkerHarness",
    "close_stream",
    "draw_hashes",
    "hash_content",
    "hash_local_pictures",
    "make_job",
    "picture_hashes",
    "put_blobs",
    "wait_until",
    "wait_until_midway",
]


class SlowFamily:
    """A family whose steps take at least `seconds`, so that a test can look at a job before it ends."""

    def __init__(self, family: Family, seconds: float = 0.02) -> None:
        self._family = family
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, *arguments: Any) -> Any:
        time.sleep(self._seconds)
        return self._family.denoise(*arguments)


class WorkerHarness(BusHarness):
    """A broker, the bot's end of the bus, and as many workers as a test wants."""

    def __init__(self, broker: Broker, families: dict[str, Family], decode_worker: DecodeWorker, lease: float) -> None:
        super().__init__(broker, lease)
        self.families = families
        self.decode_worker = decode_worker
        self.started_workers: list[tuple[Worker, asyncio.Task[None]]] = []

    async def start_worker(
        self, name: str = "one", watchdog: Watchdog | None = None, upscaler: Upscaler | None = None
    ) -> tuple[Worker, asyncio.Task[None]]:
        profile = WorkerProfile(name, "cpu", rows=8)
        engine = Engine(self.families, rows=8)
        watchdog = watchdog or Watchdog()
        worker = Worker(await self.connect(), engine, self.decode_worker, profile, watchdog, upscaler)
        task = asyncio.create_task(worker.run())
        self.started_workers.append((worker, task))
        return worker, task

    def count_steps(self, seconds: float) -> int:
        """Counts the steps of `make_job` that take about `seconds` on this machine at its present load."""
        started_at = time.monotonic()
        run_locally(make_job(steps=10), self.families)
        return min(1000, max(20, int(seconds / (time.monotonic() - started_at) * 10)))


async def wait_until_midway(worker: Worker, min_steps: int = 3) -> Any:
    """Waits until the worker's one run has made `min_steps` steps, and returns it."""
    await wait_until(lambda: any(min(run.steps_done.values()) >= min_steps for run in worker.active_runs))
    return next(iter(worker.active_runs))


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


def make_profile(family: Family) -> ModelProfile:
    return ModelProfile(
        name=family.name,
        revision=family.revision,
        dtype="float32",
        size=family.size,
        multiple=family.multiple,
        max_pixels=family.max_pixels,
        tokens=family.tokens,
        steps=10,
        sampler="ddim",
        samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
        guidance=family.guidance,
        row_ms=4.0,
        encode_ms=1.0,
        decode_ms=1.0,
        guidance_kind=family.guides,
    )


def make_cache(family: Family) -> ModelCache:
    """A model cache with this one model in memory."""
    loaded_models = LoadedModels(10)
    profile = make_profile(family)
    loaded_models.reserve(family.name, 1)
    loaded_models.add(family.name, family)
    return ModelCache(
        [ModelEntry(family.name, 1, profile, lambda report: family, lambda family: profile)], loaded_models
    )
