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

from engine.batching.engine import Engine
from engine.batching.job_images import reason_to_decline
from engine.bus import BusMessage
from engine.contract import JobFailed, JobFinished, JobStarted, PictureReady, UpscaleTask
from engine.model_cache.cache import ModelCache, ModelEntry
from engine.model_cache.loaded_models import LoadedModels
from engine.output.decode_worker import DecodeWorker
from engine.worker import intake, simulated_model
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog, WorkerProfile
from shared.worker_harness import JOB, OTHER_JOB, WorkerHarness, make_job, wait_until

CALIBRATION = simulated_model.build_calibration(row_ms=0.1, rows=8)


class NamedModel(simulated_model.SimulatedModel):
    """A simulated model with a name and a version."""

    def __init__(self, name: str, revision: str = "1") -> None:
        super().__init__(row_ms=0.1)
        self.name = name
        self.revision = revision


class MixedPool:
    """Workers with one model each, all in the pool `default`."""

    def __init__(self, harness: WorkerHarness) -> None:
        self.harness = harness
        self.decode_workers = list[DecodeWorker]()

    async def worker(self, name: str, model: str, revision: str = "1") -> Worker:
        family = NamedModel(model, revision)
        loaded_models = LoadedModels(1)
        loaded_models.reserve(model, 1)
        loaded_models.add(model, family)
        cache = ModelCache(
            [
                ModelEntry(
                    model, 1, CALIBRATION.to_model_profile(family), lambda report: family, CALIBRATION.to_model_profile
                )
            ],
            loaded_models,
        )
        self.decode_workers.append(await asyncio.to_thread(DecodeWorker, cache.families))
        engine = Engine(cache.families, rows=8)
        bus = await self.harness.connect()
        worker = Worker(
            bus, engine, self.decode_workers[-1], WorkerProfile(name, "cpu", rows=8), Watchdog(), None, cache
        )
        self.harness.started_workers.append((worker, asyncio.create_task(worker.run())))
        await wait_until(lambda: name in self.harness.bot.workers)
        return worker


@pytest_asyncio.fixture
async def mixed_pool(harness: WorkerHarness) -> AsyncIterator[MixedPool]:
    mixed_pool = MixedPool(harness)
    yield mixed_pool
    for worker, task in harness.started_workers:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)
    for decode_worker in mixed_pool.decode_workers:
        await asyncio.to_thread(decode_worker.close)


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
    harness = mixed_pool.harness
    caplog.set_level(logging.INFO, "engine.worker.intake")
    workers = [await mixed_pool.worker("shed", "embedded"), await mixed_pool.worker("attic", "embedded")]
    await harness.bot.dispatch(make_job(**recipe))
    await wait_until(lambda: len(hand_backs) >= 6)
    assert await harness.bot.get_holder(JOB) is None
    assert await harness.count_messages("results") == 0, "neither started nor failed"
    assert [len(worker.active_runs) for worker in workers] == [0, 0]
    delays = [delay for job, delay in hand_backs if job == JOB]
    assert delays == sorted(delays)
    assert 0 < delays[0] < delays[-1] <= 1.0
    messages = [record for record in caplog.records if "is for another worker" in record.message]
    assert 1 <= len(messages) <= len(workers), "once per job and worker, however often it is delivered"
    await mixed_pool.worker("cellar", recipe["model"], recipe.get("revision", "1"))
    results = await harness.collect_results()
    assert [type(value) for value in results] == [JobStarted, PictureReady, JobFinished]
    assert list_starters(results) == ["cellar"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_each_idle_worker_gets_the_jobs_of_its_model(mixed_pool: MixedPool) -> None:
    harness = mixed_pool.harness
    await mixed_pool.worker("shed", "embedded")
    await mixed_pool.worker("cellar", "sdxl")
    ids = [f"{JOB[:-1]}{end}" for end in "0123456789"]
    for number, job in enumerate(ids):
        await harness.bot.dispatch(make_job(job, model=("embedded", "sdxl")[number // 5]))
    results = await collect_results(harness, len(ids))
    assert not any(isinstance(value, JobFailed) for value in results)
    worker_of = {value.job: value.worker for value in results if isinstance(value, JobStarted)}
    assert [worker_of[job] for job in ids] == ["shed"] * 5 + ["cellar"] * 5
    assert sum(isinstance(value, JobStarted) for value in results) == len(ids), "none started twice"
    assert await harness.count_messages("dead") == 0


async def collect_results(harness: WorkerHarness, end_count: int) -> list[Any]:
    """Collects the results of all jobs until `end_count` of them have ended."""
    results: list[Any] = []
    source: Any = harness.bot.consume_results()
    async with asyncio.timeout(60):
        async for delivered in source:
            await delivered.ack()
            results.append(delivered.value)
            if sum(isinstance(value, JobFinished | JobFailed) for value in results) == end_count:
                break
    await source.aclose()
    return results


@pytest.mark.asyncio
async def test_any_worker_upscales(mixed_pool: MixedPool) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    await mixed_pool.worker("shed", "embedded")
    task = UpscaleTask(source=await mixed_pool.harness.bot.put_blob(source.getvalue()))
    await mixed_pool.harness.bot.dispatch(replace(make_job(), task=task))
    assert [type(value) for value in await mixed_pool.harness.collect_results()] == [
        JobStarted,
        PictureReady,
        JobFinished,
    ]


def test_a_worker_explains_why_a_job_is_not_for_it() -> None:
    profile = (
        CALIBRATION.to_model_profile(NamedModel("embedded", "1")),
        CALIBRATION.to_model_profile(NamedModel("sdxl", "7")),
    )
    assert reason_to_decline(make_job().task, profile) == ""
    assert reason_to_decline(make_job(model="sdxl", revision="7").task, profile) == ""
    assert reason_to_decline(make_job(model="flux").task, profile) == "This worker has no model called flux."
    reason = "This worker has another version of sdxl than the recipe names."
    assert reason_to_decline(make_job(model="sdxl", revision="1").task, profile) == reason
    assert reason_to_decline(make_job(model="flux").task, ()) == "", "its models are unknown"
    assert reason_to_decline(UpscaleTask(source="0" * 64), profile) == ""


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize(("errors", "end"), [(2, JobFinished), (3, JobFailed)])
async def test_unexpected_errors_are_counted_and_handing_back_is_not(
    mixed_pool: MixedPool, monkeypatch: pytest.MonkeyPatch, errors: int, end: type
) -> None:
    harness = mixed_pool.harness
    errors_left = [errors]
    monkeypatch.setattr(intake, "ERROR_RETRY_SECONDS", 0.1)
    await harness.bot.dispatch(make_job(OTHER_JOB))
    for _ in range(4):
        delivered = await harness.bot.pull_job(["default"], timeout=5)
        assert delivered is not None
        await delivered.nak()
    await harness.bot.stop_pulling()
    admit = Worker._admit

    async def fail_or_admit(*arguments: Any) -> None:
        if errors_left[0]:
            errors_left[0] -= 1
            raise ZeroDivisionError
        await admit(*arguments)

    monkeypatch.setattr(Worker, "_admit", fail_or_admit)
    await mixed_pool.worker("shed", "embedded")
    results = await harness.collect_results(OTHER_JOB)
    assert isinstance(results[-1], end)
    assert errors_left == [0]
    assert await harness.count_messages("dead") == (end is JobFailed)
