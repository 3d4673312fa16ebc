"""Shared by the engine's tests: an affine network, the embedded model, a small Stable Diffusion folder, jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine import models
from engine.bus.broker.embedded import Broker
from engine.models.family import Family
from engine.output.decode_worker import DecodeWorker
from shared.embedded_calibration import measured
from shared.engine_fixtures import affine, embedded, finish, job, recipe, small_folder, weights
from shared.worker_harness import LEASE, Shop

__all__ = ["affine", "embedded", "finish", "job", "recipe", "small_folder", "weights"]


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the embedded model's calibration on this machine, measured once for all processes."""
    return measured(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {"embedded": models.load_model("embedded", tmp_path_factory.mktemp("data"))}


@pytest.fixture(scope="module")
def lane(loaded: dict[str, Family]) -> Iterator[DecodeWorker]:
    lane = DecodeWorker(loaded)
    yield lane
    lane.close()


@pytest_asyncio.fixture
async def shop(
    tmp_path: Path, loaded: dict[str, Family], lane: DecodeWorker, request: pytest.FixtureRequest
) -> AsyncIterator[Shop]:
    async with Broker(tmp_path / "nats") as broker:
        shop = Shop(broker, loaded, lane, getattr(request, "param", LEASE))
        shop.bot = await shop.join()
        await shop.bot.watch_workers()
        yield shop
        for worker, task in shop.running:
            worker.drain()
            await asyncio.gather(task, return_exceptions=True)
        for bus in shop.buses:
            await bus.close()
