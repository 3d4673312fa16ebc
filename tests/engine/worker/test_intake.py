"""Workers with different models in one pool: a job starts where its model is; no other worker claims or fails it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace
from PIL import Image

from engine.bus import BusMessage
from engine.contract import JobFailed, JobFinished, JobStarted, PictureReady, UpscaleTask
from engine.core.engine import Engine
from engine.core.job_images import reason_to_decline
from engine.model_cache.cache import ModelCache, ModelEntry
from engine.model_cache.loaded_models import LoadedModels
from engine.output.decode_worker import DecodeWorker
from engine.worker import intake, simulated_model
from engine.worker.watchdog import Watchdog
from engine.worker.worker import Worker
from engine.worker.worker_profile import WorkerProfile
from shared.worker_harness import JOB, OTHER, Shop, a_job, until

CALIBRATION = simulated_model.build_calibration(row_ms=0.1, rows=8)


class NamedModel(simulated_model.SimulatedModel):
    """A simulated model with a name and a version."""

    def __init__(self, name: str, revision: str = "1") -> None:
        super().__init__(row_ms=0.1)
        self.name, self.revision = name, revision


class MixedPool:
    """Workers with one model each, all in the pool `default`."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.lanes = shop, list[DecodeWorker]()

    async def worker(self, name: str, model: str, revision: str = "1") -> Worker:
        family, stock = NamedModel(model, revision), LoadedModels(1)
        stock.reserve(model, 1)
        stock.add(model, family)
        shelf = ModelCache(
            [
                ModelEntry(
                    model, 1, CALIBRATION.to_model_profile(family), lambda report: family, CALIBRATION.to_model_profile
                )
            ],
            stock,
        )
        self.lanes.append(await asyncio.to_thread(DecodeWorker, shelf.families))
        engine, bus = Engine(shelf.families, rows=8), await self.shop.join()
        worker = Worker(bus, engine, self.lanes[-1], WorkerProfile(name, "cpu", rows=8), Watchdog(), None, shelf)
        self.shop.running.append((worker, asyncio.create_task(worker.run())))
        await until(lambda: name in self.shop.bot.workers)
        return worker


@pytest_asyncio.fixture
async def mixed_pool(shop: Shop) -> AsyncIterator[MixedPool]:
    mixed_pool = MixedPool(shop)
    yield mixed_pool
    for worker, task in shop.running:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)
    for lane in mixed_pool.lanes:
        await asyncio.to_thread(lane.close)


@pytest.fixture
def hand_backs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Records the job and the delay of every message that is handed back."""
    records: list[tuple[str, float]] = []
    nak = BusMessage.nak

    async def record_nak(self: BusMessage[Any], delay: float = 0.0) -> None:
        records.append((getattr(self.value, "id", ""), delay))
        await nak(self, delay)

    monkeypatch.setattr(BusMessage, "nak", record_nak)
    return records


def list_starters(results: list[Any]) -> list[str]:
    return [value.worker for value in results if isinstance(value, JobStarted)]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("recipe", [{"model": "sdxl"}, {"model": "embedded", "revision": "2"}])
async def test_a_job_stays_unclaimed_until_a_worker_has_its_model(
    mixed_pool: MixedPool, hand_backs: list[tuple[str, float]], caplog: pytest.LogCaptureFixture, recipe: dict[str, Any]
) -> None:
    shop = mixed_pool.shop
    caplog.set_level(logging.INFO, "engine.worker.intake")
    wrong = [await mixed_pool.worker("shed", "embedded"), await mixed_pool.worker("attic", "embedded")]
    await shop.bot.dispatch(a_job(**recipe))
    await until(lambda: len(hand_backs) >= 6)
    assert await shop.bot.get_holder(JOB) is None
    assert await shop.left("results") == 0, "neither started nor failed"
    assert [len(worker.active_runs) for worker in wrong] == [0, 0]
    delays = [delay for job, delay in hand_backs if job == JOB]
    assert delays == sorted(delays)
    assert 0 < delays[0] < delays[-1] <= 1.0
    messages = [record for record in caplog.records if "is for another worker" in record.message]
    assert 1 <= len(messages) <= len(wrong), "once per job and worker, however often it is delivered"
    await mixed_pool.worker("cellar", recipe["model"], recipe.get("revision", "1"))
    results = await shop.results()
    assert [type(value) for value in results] == [JobStarted, PictureReady, JobFinished]
    assert list_starters(results) == ["cellar"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_each_idle_worker_gets_the_jobs_of_its_model(mixed_pool: MixedPool) -> None:
    shop = mixed_pool.shop
    await mixed_pool.worker("shed", "embedded")
    await mixed_pool.worker("cellar", "sdxl")
    ids = [f"{JOB[:-1]}{end}" for end in "0123456789"]
    for number, job in enumerate(ids):
        await shop.bot.dispatch(a_job(job, model=("embedded", "sdxl")[number // 5]))
    results = await collect_results(shop, len(ids))
    assert not any(isinstance(value, JobFailed) for value in results)
    worker_of = {value.job: value.worker for value in results if isinstance(value, JobStarted)}
    assert [worker_of[job] for job in ids] == ["shed"] * 5 + ["cellar"] * 5
    assert sum(isinstance(value, JobStarted) for value in results) == len(ids), "none started twice"
    assert await shop.left("dead") == 0


async def collect_results(shop: Shop, ends: int) -> list[Any]:
    """Collects the results of all jobs until `ends` of them have ended."""
    results: list[Any] = []
    source: Any = shop.bot.consume_results()
    async with asyncio.timeout(60):
        async for delivered in source:
            await delivered.ack()
            results.append(delivered.value)
            if sum(isinstance(value, JobFinished | JobFailed) for value in results) == ends:
                break
    await source.aclose()
    return results


@pytest.mark.asyncio
async def test_any_worker_upscales(mixed_pool: MixedPool) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    await mixed_pool.worker("shed", "embedded")
    task = UpscaleTask(source=await mixed_pool.shop.bot.put_blob(source.getvalue()))
    await mixed_pool.shop.bot.dispatch(replace(a_job(), task=task))
    assert [type(value) for value in await mixed_pool.shop.results()] == [JobStarted, PictureReady, JobFinished]


def test_a_worker_explains_why_a_job_is_not_for_it() -> None:
    mine = (
        CALIBRATION.to_model_profile(NamedModel("embedded", "1")),
        CALIBRATION.to_model_profile(NamedModel("sdxl", "7")),
    )
    assert reason_to_decline(a_job().task, mine) == ""
    assert reason_to_decline(a_job(model="sdxl", revision="7").task, mine) == ""
    assert reason_to_decline(a_job(model="flux").task, mine) == "This worker has no model called flux."
    reason = "This worker has another version of sdxl than the recipe names."
    assert reason_to_decline(a_job(model="sdxl", revision="1").task, mine) == reason
    assert reason_to_decline(a_job(model="flux").task, ()) == "", "its models are unknown"
    assert reason_to_decline(UpscaleTask(source="0" * 64), mine) == ""


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize(("errors", "end"), [(2, JobFinished), (3, JobFailed)])
async def test_unexpected_errors_are_counted_and_handing_back_is_not(
    mixed_pool: MixedPool, monkeypatch: pytest.MonkeyPatch, errors: int, end: type
) -> None:
    shop, remaining = mixed_pool.shop, [errors]
    monkeypatch.setattr(intake, "ERROR_RETRY_SECONDS", 0.1)
    await shop.bot.dispatch(a_job(OTHER))
    for _ in range(4):
        delivered = await shop.bot.pull_job(["default"], timeout=5)
        assert delivered is not None
        await delivered.nak()
    await shop.bot.stop_pulling()
    admit = Worker._admit

    async def fail_or_admit(*arguments: Any) -> None:
        if remaining[0]:
            remaining[0] -= 1
            raise ZeroDivisionError
        await admit(*arguments)

    monkeypatch.setattr(Worker, "_admit", fail_or_admit)
    await mixed_pool.worker("shed", "embedded")
    results = await shop.results(OTHER)
    assert isinstance(results[-1], end)
    assert remaining == [0]
    assert await shop.left("dead") == (end is JobFailed)
