"""The model cache: several models within one budget, waiting jobs, reports, and a worker that survives failures."""

from __future__ import annotations

import asyncio
import dataclasses
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
from engine.batching.engine import Engine
from engine.bus import Bus, BusLimits
from engine.bus.embedded_broker import Broker
from engine.calibration.calibration import Calibration, measure_calibration
from engine.contract import (
    BillingKey,
    Concept,
    ControlMessage,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobModelLoading,
    JobRejected,
    Recipe,
)
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
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog, WorkerProfile
from shared.clock import wait_until
from shared.ldm_checkpoint import write_ldm_checkpoint

JOBS = [f"01ARZ3NDEKTSV4RRFFQ69G5FA{letter}" for letter in "ABCDEFG"]
NAMES = ("one", "two", "three")
LEASE = 4.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small models, all with a stored calibration: that of the first, since their weights are the same."""
    data = tmp_path_factory.mktemp("data")
    save_small_pipeline("sd", data / "models" / "one")
    for name in NAMES[1:]:
        shutil.copytree(data / "models" / "one", data / "models" / name)
    measured: list[Calibration] = []

    def measure_first(*arguments: Any) -> Calibration:
        if not measured:
            measured.append(measure_calibration(*arguments))
        return measured[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.calibration.calibration.measure_calibration", measure_first)
        load_all_models(settings(data))
    return data


def settings(data: Path, *names: str, memory: str = "") -> Any:
    return load_settings(nats="nats://127.0.0.1:1", data=data, models=names or NAMES, device="cpu", memory=memory)


def budget(data: Path, models: float) -> str:
    """The memory budget for this number of small models."""
    return str(int(models * discovery.discover_models(["one"], make_path(data))[0].size))


def make_path(data: Path) -> LoadContext:
    """Makes the worker's path for models, so that it finds its stored measurements."""
    return LoadContext(data, torch.device("cpu"), SuperResolver.load(None), main.build_label())


# Start


@pytest.mark.slow
def test_at_the_start_only_the_first_and_unknown_models_are_loaded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_names: list[str] = []
    monkeypatch.setattr(
        "engine.calibration.calibration.measure_calibration", lambda family: measured_names.append(family.name)
    )
    ready = load_all_models(settings(data))
    assert list(ready.model_store.families) == ["one"]
    assert [model.name for model, _ in ready.models] == list(NAMES)
    assert measured_names == []


@pytest.mark.slow
def test_a_model_with_changed_weights_is_measured_again_and_no_other(data: Path, tmp_path: Path) -> None:
    data_copy = shutil.copytree(data, tmp_path / "data")
    known_models = catalog_file.read_catalog(data_copy)
    weights = next((data_copy / "models" / "two" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    ready = load_all_models(settings(data_copy, memory=budget(data_copy, 1.5)))
    assert list(ready.model_store.families) == ["one"]
    assert len(catalog_file.read_catalog(data_copy)) == len(known_models) + 1
    (data_copy / catalog_file.FILE_NAME).write_text("{")
    assert len(load_all_models(settings(data_copy)).model_store.families) == 3


def test_a_model_larger_than_the_budget_is_refused_at_the_start(data: Path) -> None:
    with pytest.raises(JobRejected, match=r"The model one needs about .* of memory, and models may take .* here\."):
        load_all_models(settings(data, memory=budget(data, 0.9)))


def test_two_models_with_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "models" / "one", tmp_path / "one")
    with pytest.raises(JobRejected, match="Two models are called one"):
        discover_models(["one", str(tmp_path / "one")], make_path(data))


def test_a_new_lora_makes_the_stored_catalogue_entry_stale(data: Path, tmp_path: Path) -> None:
    data_copy = shutil.copytree(data, tmp_path / "data")
    assert all(one.catalog_entry for one in discover_models(NAMES, make_path(data_copy)))
    (data_copy / "loras").mkdir()
    save_file({"a": torch.zeros(1)}, data_copy / "loras" / "new.safetensors")
    assert not any(one.catalog_entry for one in discover_models(NAMES, make_path(data_copy)))


def test_a_models_own_turbo_makes_only_its_catalogue_entry_stale(data: Path, tmp_path: Path) -> None:
    data_copy = shutil.copytree(data, tmp_path / "data")
    (data_copy / "models" / "two" / "turbo").mkdir()
    save_file({"a": torch.zeros(1)}, data_copy / "models" / "two" / "turbo" / "pytorch_lora_weights.safetensors")
    discovered = discover_models(NAMES, make_path(data_copy))
    assert [one.name for one in discovered if one.catalog_entry is None] == ["two"]


def test_a_model_of_the_hub_is_downloaded_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []

    def fake_download(name: str) -> Path:
        requests.append(name)
        return data / "models" / "one"

    monkeypatch.setattr("engine.models.files.model_source._download", fake_download)
    (one,) = discover_models(["owner/name"], make_path(tmp_path))
    family: Any = one.load(None)
    assert (family.name, family.lora_folder) == ("name", tmp_path / "loras")
    assert requests == ["owner/name"]


def test_configurations_of_a_single_file_are_downloaded_at_the_start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ldm_checkpoint(data / "models" / "one", tmp_path / "old.safetensors", configs=False)
    configs = shutil.ignore_patterns("*.safetensors")
    config_requests = shutil.copytree(data / "models" / "one", tmp_path / "fetched", ignore=configs)
    requests = list[str]()

    def fake_download(repository: str, **_: Any) -> str:
        requests.append(repository)
        return str(config_requests)

    monkeypatch.setattr("engine.models.loading.single_file.snapshot_download", fake_download)
    (one,) = discover_models([str(tmp_path / "old.safetensors")], make_path(tmp_path))
    assert len(requests) == 1
    assert one.load(None).name == "old"
    assert len(requests) == 1


def test_an_autoencoder_for_all_models_takes_the_place_of_those_that_it_fits(data: Path, tmp_path: Path) -> None:
    data_copy = shutil.copytree(data, tmp_path / "data")
    (data_copy / "vaes").mkdir()
    shutil.copytree(data_copy / "models" / "one" / "vae", data_copy / "vaes" / "fine")
    plain, chosen = (
        discover_models(["one"], dataclasses.replace(make_path(data_copy), autoencoder=name))[0]
        for name in ("", "fine")
    )
    assert plain.catalog_key != chosen.catalog_key
    families: list[Any] = [plain.load(None), chosen.load(None)]
    assert families[0].revision != families[1].revision
    with pytest.raises(JobRejected, match="This worker has no autoencoder called nope"):
        discover_models(["one"], dataclasses.replace(make_path(data_copy), autoencoder="nope"))


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
class GatedModelOpener:
    """Opens models through a gate that a test controls, and records the loads."""

    data: Path
    gate: threading.Event = field(default_factory=threading.Event)
    loads: list[str] = field(default_factory=list)
    failing_model: str = ""

    def open_cache(self, models: float) -> ModelCache:
        own_place = make_path(self.data)
        models_found = discover_models(NAMES, own_place)
        loaded_models = LoadedModels(int(float(budget(self.data, models))))
        models_at_gate = [model for model, _ in load_models(models_found, own_place, loaded_models)]
        for model in models_at_gate:
            model.load = self._make_gated_opener(model)
        return ModelCache(models_at_gate, loaded_models)

    def _make_gated_opener(self, model: ModelEntry) -> Callable[[Any], Any]:
        open_model = model.load

        def open_at_gate(report: Any) -> Any:
            self.loads.append(model.name)
            report(0.25)
            self.gate.wait(30)
            report(0.5)
            if model.name == self.failing_model:
                raise ZeroDivisionError
            return open_model(report)

        return open_at_gate


@pytest.fixture
def model_opener(data: Path) -> GatedModelOpener:
    return GatedModelOpener(data)


def loaded_names(cache: ModelCache) -> list[str]:
    return sorted(each.name for each in cache.list_models() if each.loaded)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_two_jobs_for_one_model_load_it_once(model_opener: GatedModelOpener) -> None:
    cache = model_opener.open_cache(2.5)
    acquire_tasks = [asyncio.create_task(cache.acquire("two", "float32")) for _ in range(2)]
    await wait_until(lambda: cache.get_loaded_fraction("two") == 0.25)
    assert loaded_names(cache) == ["one"]
    model_opener.gate.set()
    assert await asyncio.gather(*acquire_tasks) == [True, True]
    assert model_opener.loads == ["two"]
    assert loaded_names(cache) == ["one", "two"]
    assert await cache.acquire("two", "bfloat16")
    assert not await cache.acquire("unknown", "float32")


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_model_in_use_is_evicted_only_after_its_last_use(model_opener: GatedModelOpener) -> None:
    cache = model_opener.open_cache(1.5)
    model_opener.gate.set()
    await cache.acquire("one", "float32")
    acquire_task = asyncio.create_task(cache.acquire("two", "float32"))
    await asyncio.sleep(0.3)
    assert loaded_names(cache) == ["one"]
    assert await asyncio.wait_for(cache.acquire("one", "float32"), 1.0)
    for _ in range(2):
        cache.release("one")
    await asyncio.wait_for(acquire_task, 30)
    assert loaded_names(cache) == ["two"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_long_waiting_job_goes_before_newcomers(
    model_opener: GatedModelOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.2)
    cache = model_opener.open_cache(1.5)
    model_opener.gate.set()
    await cache.acquire("one", "float32")
    acquire_task = asyncio.create_task(cache.acquire("two", "float32"))
    await asyncio.sleep(0.4)
    late_task = asyncio.create_task(cache.acquire("one", "float32"))
    await asyncio.sleep(0.1)
    assert not late_task.done()
    cache.release("one")
    await asyncio.wait_for(acquire_task, 30)
    cache.release("two")
    await asyncio.wait_for(late_task, 30)
    assert model_opener.loads == ["two", "one"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_loading_stops_and_frees_memory_once_nobody_waits_for_it(model_opener: GatedModelOpener) -> None:
    cache = model_opener.open_cache(1.5)
    take = asyncio.create_task(cache.acquire("two", "float32"))
    await wait_until(lambda: cache.get_loaded_fraction("two") == 0.25)
    take.cancel()
    await asyncio.gather(take, return_exceptions=True)
    model_opener.gate.set()
    await wait_until(lambda: cache._loaded_models.used_bytes == 0)
    assert loaded_names(cache) == []
    assert await asyncio.wait_for(cache.acquire("three", "float32"), 30)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_failed_load_is_one_sentence_for_all_and_can_be_retried(model_opener: GatedModelOpener) -> None:
    cache = model_opener.open_cache(2.5)
    model_opener.failing_model = "two"
    model_opener.gate.set()
    acquire_tasks = [asyncio.create_task(cache.acquire("two", "float32")) for _ in range(2)]
    for outcome in await asyncio.gather(*acquire_tasks, return_exceptions=True):
        assert isinstance(outcome, JobRejected)
        assert outcome.sentence == "The model two could not be loaded."
    model_opener.failing_model = ""
    assert await cache.acquire("two", "float32")


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_files_that_changed_since_the_start_are_refused(model_opener: GatedModelOpener, tmp_path: Path) -> None:
    model_opener.data = shutil.copytree(model_opener.data, tmp_path / "data")
    cache = model_opener.open_cache(2.5)
    model_opener.gate.set()
    weights = next((model_opener.data / "models" / "two" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(JobRejected, match="The files of the model two have changed: restart this worker"):
        await cache.acquire("two", "float32")


# The worker, with a real broker


@dataclass
class CacheHarness:
    broker: Broker
    model_opener: GatedModelOpener
    bot: Bus
    buses: list[Bus] = field(default_factory=list)
    loadings: list[JobModelLoading] = field(default_factory=list)
    watchdog: Watchdog = field(default_factory=Watchdog)
    task: asyncio.Task[None] | None = None

    async def start_worker(self, models: float) -> tuple[Worker, ModelCache]:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=LEASE))
        self.buses.append(bus)
        cache = self.model_opener.open_cache(models)
        engine = Engine(cache.families, rows=8)
        decode_worker = DecodeWorker(cache.families)
        worker = Worker(bus, engine, decode_worker, WorkerProfile("w", "cpu", rows=8), self.watchdog, None, cache)
        self.task = asyncio.create_task(worker.run())
        self.task.add_done_callback(lambda _: decode_worker.close())
        return worker, cache

    async def collect_loadings(self) -> None:
        async for loading in self.bot.watch_loadings():
            self.loadings.append(loading)

    async def wait_for_ends(self, *jobs: str) -> dict[str, Any]:
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
async def harness(model_opener: GatedModelOpener, tmp_path: Path) -> AsyncIterator[CacheHarness]:
    async with Broker(tmp_path / "nats") as broker:
        bot = await Bus.connect(broker.url, broker.token, limits=BusLimits(lease=LEASE))
        await bot.declare()
        await bot.watch_workers()
        harness = CacheHarness(broker, model_opener, bot)
        listener = asyncio.create_task(harness.collect_loadings())
        yield harness
        model_opener.gate.set()
        listener.cancel()
        if harness.task is not None:
            harness.task.cancel()
            await asyncio.gather(harness.task, return_exceptions=True)
        for bus in (*harness.buses, bot):
            await bus.close()


def make_job(job: str, model: str, steps: int = 3) -> Job:
    task = Recipe(
        concepts=(Concept("a cat"),),
        model=model,
        sampler="ddim",
        steps=steps,
        seed=1,
        guidance=1.0,
        width=32,
        height=32,
        count=1,
        dtype="float32",
    )
    share = BillingKey("standard", "guild", "ann")
    return Job(id=job, task=task, billing_key=share, cost=1.0, deadline=2e9, ladder=False)


def announced_models(bot: Bus) -> list[str]:
    presence = bot.workers.get("w")
    return [each.name for each in presence.models if each.loaded] if presence else ["nobody"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_job_waits_for_its_model_with_progress_while_other_jobs_run(harness: CacheHarness) -> None:
    await harness.start_worker(2.5)
    await wait_until(lambda: announced_models(harness.bot) == ["one"])
    assert [each.name for each in harness.bot.workers["w"].models] == list(NAMES)
    await harness.bot.dispatch(make_job(JOBS[0], "two"))
    await wait_until(lambda: len([each for each in harness.loadings if each.loaded_share == 0.25]) >= 2)
    assert {(each.job, each.model) for each in harness.loadings} == {(JOBS[0], "two")}
    assert "the loader" in harness.watchdog._current_phases
    assert harness.watchdog._current_phases["the loader"][0] == "load"
    await harness.bot.dispatch(make_job(JOBS[1], "one"))
    assert isinstance((await harness.wait_for_ends(JOBS[1]))[JOBS[1]], JobFinished)
    harness.model_opener.gate.set()
    assert isinstance((await harness.wait_for_ends(JOBS[0]))[JOBS[0]], JobFinished)
    await wait_until(lambda: announced_models(harness.bot) == ["one", "two"])
    assert "the loader" not in harness.watchdog._current_phases


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_budget_for_one_model_swaps_models_with_the_jobs(harness: CacheHarness) -> None:
    _, cache = await harness.start_worker(1.5)
    harness.model_opener.gate.set()
    for job, model in zip(JOBS, ("one", "two", "three", "one"), strict=False):
        await harness.bot.dispatch(make_job(job, model))
        assert isinstance((await harness.wait_for_ends(job))[job], JobFinished)
        await wait_until(lambda model=model: announced_models(harness.bot) == [model])
        await wait_until(lambda model=model: cache._loaded_models.count_users(model) == 0)
    assert harness.model_opener.loads == ["two", "three", "one"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_cancel_during_loading_ends_the_job_at_once(harness: CacheHarness) -> None:
    worker, cache = await harness.start_worker(1.5)
    await harness.bot.dispatch(make_job(JOBS[0], "two"))
    await wait_until(lambda: cache.get_loaded_fraction("two") == 0.25)
    await harness.bot.cancel(JOBS[0])
    end = (await harness.wait_for_ends(JOBS[0]))[JOBS[0]]
    assert isinstance(end, JobCancelled)
    assert end.steps == 0
    assert len(worker.active_runs) == 0
    harness.model_opener.gate.set()
    await harness.bot.dispatch(make_job(JOBS[1], "one"))
    assert isinstance((await harness.wait_for_ends(JOBS[1]))[JOBS[1]], JobFinished)
    assert cache._loaded_models.count_users("two") == 0


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_failed_load_fails_its_jobs_and_the_worker_continues(harness: CacheHarness) -> None:
    await harness.start_worker(2.5)
    harness.model_opener.failing_model = "two"
    for job in JOBS[:2]:
        await harness.bot.dispatch(make_job(job, "two"))
    await wait_until(lambda: "two" in harness.model_opener.loads)
    harness.model_opener.gate.set()
    for end in (await harness.wait_for_ends(*JOBS[:2])).values():
        assert isinstance(end, JobFailed)
        assert (end.reason, end.blame) == ("The model two could not be loaded.", "worker")
    await harness.bot.dispatch(make_job(JOBS[2], "one"))
    assert isinstance((await harness.wait_for_ends(JOBS[2]))[JOBS[2]], JobFinished)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_worker_that_stops_during_loading_hands_the_job_back(harness: CacheHarness) -> None:
    worker, cache = await harness.start_worker(2.5)
    await harness.bot.dispatch(make_job(JOBS[0], "two"))
    await wait_until(lambda: cache.get_loaded_fraction("two") == 0.25)
    worker.drain()
    assert harness.task is not None
    await asyncio.wait_for(harness.task, 10)
    redelivery = await harness.bot.pull_job(["default"], timeout=LEASE / 2)
    assert redelivery is not None
    assert redelivery.value.id == JOBS[0]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.may_block
async def test_a_pause_ends_when_other_jobs_wait_for_the_memory_of_its_model(
    harness: CacheHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.3)
    worker, _ = await harness.start_worker(1.5)
    harness.model_opener.gate.set()
    await harness.bot.dispatch(make_job(JOBS[0], "one", steps=150))
    await wait_until(lambda: any(run.steps_done[0] > 0 for run in worker.active_runs))
    await harness.bot.send_control(ControlMessage(job=JOBS[0], action="pause"))
    await wait_until(lambda: any(run.pause_timer is not None for run in worker.active_runs))
    await harness.bot.dispatch(make_job(JOBS[1], "two"))
    end_messages = await asyncio.wait_for(harness.wait_for_ends(*JOBS[:2]), 30)
    assert all(isinstance(end, JobFinished) for end in end_messages.values())
