"""The model cache: several models within one budget. Who waits, what is reported, and that the worker survives."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.bus import Bus, BusLimits
from engine.bus.broker.embedded import Broker
from engine.contract import (
    BillingKey,
    Concept,
    ControlMessage,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobModelLoading,
    Recipe,
)
from engine.contract.rejection import JobRejected
from engine.core.engine import Engine
from engine.model_cache import cache as model_cache
from engine.model_cache import catalog_file, discovery
from engine.model_cache.cache import ModelCache, ModelEntry
from engine.model_cache.discovery import LoadContext, discover_models, load_models
from engine.model_cache.loaded_models import LoadedModels
from engine.output.decode_worker import DecodeWorker
from engine.process.settings import load_settings
from engine.upscaling.super_resolver import SuperResolver
from engine.worker import main
from engine.worker.main import load_all_models
from engine.worker.watchdog import Watchdog
from engine.worker.worker import Worker
from engine.worker.worker_profile import WorkerProfile
from shared.ldm_checkpoint import write

JOBS = [f"01ARZ3NDEKTSV4RRFFQ69G5FA{letter}" for letter in "ABCDEFG"]
NAMES = ("one", "two", "three")
LEASE = 4.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small models, all with a stored calibration."""
    data = tmp_path_factory.mktemp("data")
    save_small_pipeline("sd", data / "models" / "one")
    for name in NAMES[1:]:
        shutil.copytree(data / "models" / "one", data / "models" / name)
    load_all_models(settings(data))
    return data


def settings(data: Path, *names: str, memory: str = "") -> Any:
    return load_settings(nats="nats://127.0.0.1:1", data=data, models=names or NAMES, device="cpu", memory=memory)


def budget(data: Path, models: float) -> str:
    """The memory budget for this number of small models."""
    return str(int(models * discovery.discover_models(["one"], place(data))[0].size))


def place(data: Path) -> LoadContext:
    """The worker's place for models, so that its stored measurements are found."""
    return LoadContext(data, torch.device("cpu"), SuperResolver.load(None), main.build_label())


# Start


@pytest.mark.slow
def test_at_the_start_only_the_first_and_unknown_models_are_loaded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    monkeypatch.setattr(
        "engine.calibration.calibration.measure_calibration", lambda family: measured.append(family.name)
    )
    ready = load_all_models(settings(data))
    assert list(ready.model_store.families) == ["one"]
    assert [model.name for model, _ in ready.models] == list(NAMES)
    assert measured == []


@pytest.mark.slow
def test_a_model_with_changed_weights_is_measured_again_and_no_other(data: Path, tmp_path: Path) -> None:
    data_copy = shutil.copytree(data, tmp_path / "data")
    known = catalog_file.read_catalog(data_copy)
    weights = next((data_copy / "models" / "two" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    ready = load_all_models(settings(data_copy, memory=budget(data_copy, 1.5)))
    assert list(ready.model_store.families) == ["one"]
    assert len(catalog_file.read_catalog(data_copy)) == len(known) + 1
    (data_copy / catalog_file.FILE_NAME).write_text("{")
    assert len(load_all_models(settings(data_copy)).model_store.families) == 3


def test_a_model_larger_than_the_budget_is_refused_at_the_start(data: Path) -> None:
    with pytest.raises(JobRejected, match=r"The model one needs about .* of memory, and models may take .* here\."):
        load_all_models(settings(data, memory=budget(data, 0.9)))


def test_two_models_with_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "models" / "one", tmp_path / "one")
    with pytest.raises(JobRejected, match="Two models are called one"):
        discover_models(["one", str(tmp_path / "one")], place(data))


def test_a_new_lora_makes_the_stored_catalogue_entry_stale(data: Path, tmp_path: Path) -> None:
    data_copy = shutil.copytree(data, tmp_path / "data")
    assert all(one.catalog_entry for one in discover_models(NAMES, place(data_copy)))
    (data_copy / "loras").mkdir()
    save_file({"a": torch.zeros(1)}, data_copy / "loras" / "new.safetensors")
    assert not any(one.catalog_entry for one in discover_models(NAMES, place(data_copy)))


def test_a_model_of_the_hub_is_downloaded_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []

    def fake_download(name: str) -> Path:
        requests.append(name)
        return data / "models" / "one"

    monkeypatch.setattr("engine.models.files.model_source._download", fake_download)
    (one,) = discover_models(["owner/name"], place(tmp_path))
    family: Any = one.load(None)
    assert (family.name, family.lora_folder) == ("name", tmp_path / "loras")
    assert requests == ["owner/name"]


def test_configurations_of_a_single_file_are_downloaded_at_the_start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(data / "models" / "one", tmp_path / "old.safetensors", configs=False)
    configs = shutil.ignore_patterns("*.safetensors")
    configurations, requests = (
        shutil.copytree(data / "models" / "one", tmp_path / "fetched", ignore=configs),
        list[str](),
    )

    def fake_download(repository: str, **_: Any) -> str:
        requests.append(repository)
        return str(configurations)

    monkeypatch.setattr("engine.models.loading.single_file.snapshot_download", fake_download)
    (one,) = discover_models([str(tmp_path / "old.safetensors")], place(tmp_path))
    assert len(requests) == 1
    assert one.load(None).name == "old"
    assert len(requests) == 1


@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_slow_hub_does_not_count_as_slow_loading(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_slowly(*args: Any) -> Any:
        time.sleep(1.0)
        return discover_models(*args)

    ready = object()
    monkeypatch.setattr("engine.model_cache.discovery.discover_models", find_slowly)
    monkeypatch.setattr(main, "load_startup_models", lambda *args: ready)
    monkeypatch.setitem(main.DEADLINES, "load", 0.5)
    assert await main._load_with_timeout(settings(data, "one")) is ready


# The model cache


@dataclass
class Opening:
    """Models whose loading waits at a gate and is recorded."""

    data: Path
    gate: threading.Event = field(default_factory=threading.Event)
    loads: list[str] = field(default_factory=list)
    spoilt: str = ""

    def shelf(self, models: float) -> ModelCache:
        own_place = place(self.data)
        models_found = discover_models(NAMES, own_place)
        stock = LoadedModels(int(float(budget(self.data, models))))
        models_at_gate = [model for model, _ in load_models(models_found, own_place, stock)]
        for model in models_at_gate:
            model.load = self._gated(model)
        return ModelCache(models_at_gate, stock)

    def _gated(self, model: ModelEntry) -> Callable[[Any], Any]:
        open_model = model.load

        def open_at_gate(report: Any) -> Any:
            self.loads.append(model.name)
            report(0.25)
            self.gate.wait(30)
            report(0.5)
            if model.name == self.spoilt:
                raise ZeroDivisionError
            return open_model(report)

        return open_at_gate


@pytest.fixture
def opening(data: Path) -> Opening:
    return Opening(data)


async def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def loaded_names(cache: ModelCache) -> list[str]:
    return sorted(each.name for each in cache.list_models() if each.loaded)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_two_jobs_for_one_model_load_it_once(opening: Opening) -> None:
    cache = opening.shelf(2.5)
    takes = [asyncio.create_task(cache.acquire("two", "float32")) for _ in range(2)]
    await until(lambda: cache.get_loaded_fraction("two") == 0.25)
    assert loaded_names(cache) == ["one"]
    opening.gate.set()
    assert await asyncio.gather(*takes) == [True, True]
    assert opening.loads == ["two"]
    assert loaded_names(cache) == ["one", "two"]
    assert await cache.acquire("two", "bfloat16")
    assert not await cache.acquire("unknown", "float32")


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_model_in_use_is_evicted_only_after_its_last_use(opening: Opening) -> None:
    cache = opening.shelf(1.5)
    opening.gate.set()
    await cache.acquire("one", "float32")
    waiting = asyncio.create_task(cache.acquire("two", "float32"))
    await asyncio.sleep(0.3)
    assert loaded_names(cache) == ["one"]
    assert await asyncio.wait_for(cache.acquire("one", "float32"), 1.0)
    for _ in range(2):
        cache.release("one")
    await asyncio.wait_for(waiting, 30)
    assert loaded_names(cache) == ["two"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_long_waiting_job_goes_before_newcomers(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.2)
    cache = opening.shelf(1.5)
    opening.gate.set()
    await cache.acquire("one", "float32")
    waiting = asyncio.create_task(cache.acquire("two", "float32"))
    await asyncio.sleep(0.4)
    late = asyncio.create_task(cache.acquire("one", "float32"))
    await asyncio.sleep(0.1)
    assert not late.done()
    cache.release("one")
    await asyncio.wait_for(waiting, 30)
    cache.release("two")
    await asyncio.wait_for(late, 30)
    assert opening.loads == ["two", "one"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_loading_stops_and_frees_memory_once_nobody_waits_for_it(opening: Opening) -> None:
    cache = opening.shelf(1.5)
    take = asyncio.create_task(cache.acquire("two", "float32"))
    await until(lambda: cache.get_loaded_fraction("two") == 0.25)
    take.cancel()
    await asyncio.gather(take, return_exceptions=True)
    opening.gate.set()
    await until(lambda: cache._loaded_models.used_bytes == 0)
    assert loaded_names(cache) == []
    assert await asyncio.wait_for(cache.acquire("three", "float32"), 30)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_failed_load_is_one_sentence_for_all_and_can_be_retried(opening: Opening) -> None:
    cache = opening.shelf(2.5)
    opening.spoilt = "two"
    opening.gate.set()
    takes = [asyncio.create_task(cache.acquire("two", "float32")) for _ in range(2)]
    for outcome in await asyncio.gather(*takes, return_exceptions=True):
        assert isinstance(outcome, JobRejected)
        assert outcome.sentence == "The model two could not be loaded."
    opening.spoilt = ""
    assert await cache.acquire("two", "float32")


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_files_that_changed_since_the_start_are_refused(opening: Opening, tmp_path: Path) -> None:
    opening.data = shutil.copytree(opening.data, tmp_path / "data")
    cache = opening.shelf(2.5)
    opening.gate.set()
    weights = next((opening.data / "models" / "two" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(JobRejected, match="The files of the model two have changed: restart this worker"):
        await cache.acquire("two", "float32")


# The worker, with a real broker


@dataclass
class Shop:
    broker: Broker
    opening: Opening
    bot: Bus
    buses: list[Bus] = field(default_factory=list)
    loadings: list[JobModelLoading] = field(default_factory=list)
    pulse: Watchdog = field(default_factory=Watchdog)
    task: asyncio.Task[None] | None = None

    async def worker(self, models: float) -> tuple[Worker, ModelCache]:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=LEASE))
        self.buses.append(bus)
        cache = self.opening.shelf(models)
        engine, lane = Engine(cache.families, rows=8), DecodeWorker(cache.families)
        worker = Worker(bus, engine, lane, WorkerProfile("w", "cpu", rows=8), self.pulse, None, cache)
        self.task = asyncio.create_task(worker.run())
        self.task.add_done_callback(lambda _: lane.close())
        return worker, cache

    async def listen(self) -> None:
        async for loading in self.bot.watch_loadings():
            self.loadings.append(loading)

    async def ends(self, *jobs: str) -> dict[str, Any]:
        """Waits until all these jobs have ended; returns their last messages."""
        ends_by_job: dict[str, Any] = {}
        source: Any = self.bot.consume_results()
        async with asyncio.timeout(60):
            async for delivered in source:
                await delivered.ack()
                if isinstance(delivered.value, JobFinished | JobFailed | JobCancelled):
                    ends_by_job[delivered.value.job] = delivered.value
                if set(jobs) <= set(ends_by_job):
                    break
        await source.aclose()
        return ends_by_job


@pytest_asyncio.fixture
async def shop(opening: Opening, tmp_path: Path) -> AsyncIterator[Shop]:
    async with Broker(tmp_path / "nats") as broker:
        bot = await Bus.connect(broker.url, broker.token, limits=BusLimits(lease=LEASE))
        await bot.declare()
        await bot.watch_workers()
        shop = Shop(broker, opening, bot)
        listening = asyncio.create_task(shop.listen())
        yield shop
        opening.gate.set()
        listening.cancel()
        if shop.task is not None:
            shop.task.cancel()
            await asyncio.gather(shop.task, return_exceptions=True)
        for bus in (*shop.buses, bot):
            await bus.close()


def a_job(job: str, model: str, steps: int = 3) -> Job:
    task = Recipe(
        concepts=(Concept("a cat"),), model=model, sampler="ddim", steps=steps, seed=1, guidance=1.0, width=32,
        height=32, count=1, dtype="float32",
    )  # fmt: skip
    share = BillingKey("standard", "guild", "ann")
    return Job(id=job, task=task, share=share, cost=1.0, deadline=2e9, ladder=False)


def announced_models(bot: Bus) -> list[str]:
    presence = bot.workers.get("w")
    return [each.name for each in presence.models if each.loaded] if presence else ["nobody"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_job_waits_for_its_model_with_progress_while_other_jobs_run(shop: Shop) -> None:
    await shop.worker(2.5)
    await until(lambda: announced_models(shop.bot) == ["one"])
    assert [each.name for each in shop.bot.workers["w"].models] == list(NAMES)
    await shop.bot.dispatch(a_job(JOBS[0], "two"))
    await until(lambda: len([each for each in shop.loadings if each.done == 0.25]) >= 2)
    assert {(each.job, each.model) for each in shop.loadings} == {(JOBS[0], "two")}
    assert "the loader" in shop.pulse._current_phases
    assert shop.pulse._current_phases["the loader"][0] == "load"
    await shop.bot.dispatch(a_job(JOBS[1], "one"))
    assert isinstance((await shop.ends(JOBS[1]))[JOBS[1]], JobFinished)
    shop.opening.gate.set()
    assert isinstance((await shop.ends(JOBS[0]))[JOBS[0]], JobFinished)
    await until(lambda: announced_models(shop.bot) == ["one", "two"])
    assert "the loader" not in shop.pulse._current_phases


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_budget_for_one_model_swaps_models_with_the_jobs(shop: Shop) -> None:
    _, cache = await shop.worker(1.5)
    shop.opening.gate.set()
    for job, model in zip(JOBS, ("one", "two", "three", "one"), strict=False):
        await shop.bot.dispatch(a_job(job, model))
        assert isinstance((await shop.ends(job))[job], JobFinished)
        await until(lambda model=model: announced_models(shop.bot) == [model])
        await until(lambda model=model: cache._loaded_models.count_users(model) == 0)
    assert shop.opening.loads == ["two", "three", "one"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_cancel_during_loading_ends_the_job_at_once(shop: Shop) -> None:
    worker, cache = await shop.worker(1.5)
    await shop.bot.dispatch(a_job(JOBS[0], "two"))
    await until(lambda: cache.get_loaded_fraction("two") == 0.25)
    await shop.bot.cancel(JOBS[0])
    end = (await shop.ends(JOBS[0]))[JOBS[0]]
    assert isinstance(end, JobCancelled)
    assert end.steps == 0
    assert len(worker.active_runs) == 0
    shop.opening.gate.set()
    await shop.bot.dispatch(a_job(JOBS[1], "one"))
    assert isinstance((await shop.ends(JOBS[1]))[JOBS[1]], JobFinished)
    assert cache._loaded_models.count_users("two") == 0


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_failed_load_fails_its_jobs_and_the_worker_continues(shop: Shop) -> None:
    await shop.worker(2.5)
    shop.opening.spoilt = "two"
    for job in JOBS[:2]:
        await shop.bot.dispatch(a_job(job, "two"))
    await until(lambda: "two" in shop.opening.loads)
    shop.opening.gate.set()
    for end in (await shop.ends(*JOBS[:2])).values():
        assert isinstance(end, JobFailed)
        assert (end.reason, end.blame) == ("The model two could not be loaded.", "worker")
    await shop.bot.dispatch(a_job(JOBS[2], "one"))
    assert isinstance((await shop.ends(JOBS[2]))[JOBS[2]], JobFinished)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_worker_that_stops_during_loading_hands_the_job_back(shop: Shop) -> None:
    worker, cache = await shop.worker(2.5)
    await shop.bot.dispatch(a_job(JOBS[0], "two"))
    await until(lambda: cache.get_loaded_fraction("two") == 0.25)
    worker.drain()
    assert shop.task is not None
    await asyncio.wait_for(shop.task, 10)
    again = await shop.bot.pull_job(["default"], timeout=LEASE / 2)
    assert again is not None
    assert again.value.id == JOBS[0]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_pause_ends_when_other_jobs_wait_for_the_memory_of_its_model(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.3)
    worker, _ = await shop.worker(1.5)
    shop.opening.gate.set()
    await shop.bot.dispatch(a_job(JOBS[0], "one", steps=300))
    await until(lambda: any(run.steps_done[0] > 0 for run in worker.active_runs))
    await shop.bot.send_control(ControlMessage(job=JOBS[0], deed="pause"))
    await until(lambda: any(run.pause_timer is not None for run in worker.active_runs))
    await shop.bot.dispatch(a_job(JOBS[1], "two"))
    ends = await asyncio.wait_for(shop.ends(*JOBS[:2]), 30)
    assert all(isinstance(end, JobFinished) for end in ends.values())
