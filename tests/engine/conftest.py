"""Shared by the engine's tests: an affine network, the embedded model, a small Stable Diffusion folder, jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine import models
from engine.bus.embedded_broker import Broker
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from shared.embedded_calibration import measure_once
from shared.engine_fixtures import affine, build_recipe, embedded, finish, job, recipe, small_folder, weights
from shared.worker_harness import LEASE, WorkerHarness

__all__ = ["affine", "build_recipe", "embedded", "finish", "job", "recipe", "small_folder", "weights"]


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the embedded model's calibration on this machine, measured once for all processes."""
    return measure_once(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {"embedded": models.load_model("embedded", tmp_path_factory.mktemp("data"))}


@pytest.fixture(scope="module")
def decode_worker(loaded_models: dict[str, Family]) -> Iterator[DecodeWorker]:
    decode_worker = DecodeWorker(loaded_models)
    yield decode_worker
    decode_worker.close()


@pytest_asyncio.fixture
async def harness(
    tmp_path: Path, loaded_models: dict[str, Family], decode_worker: DecodeWorker, request: pytest.FixtureRequest
) -> AsyncIterator[WorkerHarness]:
    async with Broker(tmp_path / "nats") as broker:
        harness = WorkerHarness(broker, loaded_models, decode_worker, getattr(request, "param", LEASE))
        harness.bot = await harness.connect()
        await harness.bot.watch_workers()
        yield harness
        for worker, task in harness.started_workers:
            worker.drain()
            await asyncio.gather(task, return_exceptions=True)
        for bus in harness.buses:
            await bus.close()
