"""Runs one worker process: connects to the broker, loads the models, and works until it gets a signal to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from engine.batching.engine import Engine
from engine.bus import BrokerUnreachable, Bus
from engine.calibration.calibration import Calibration, read_device_name
from engine.contract import JobRejected, ModelProgress
from engine.device.core_turns import CoreTurns, compute_in_thread
from engine.device.memory import choose_device, model_budget
from engine.model_cache.cache import ModelCache, ModelEntry
from engine.model_cache.loaded_models import LoadedModels
from engine.models.text_embedder import Embedder
from engine.output.decode_worker import DecodeWorker
from engine.output.picture_check import PictureCheck
from engine.output.upscaler import Upscaler
from engine.preview_maps.latent_map import MapStore
from engine.process.load_progress import ProgressLines
from engine.process.settings import PictureCheckSettings, SimulationSettings, WorkerSettings
from engine.process.system import exempt_from_collection, limit_heap_arenas
from engine.upscaling.super_resolver import SuperResolver
from engine.worker.worker import Worker
from engine.worker.worker_life import (
    DEADLINES,
    SignalHandlers,
    Stuck,
    Watchdog,
    WorkerProfile,
    act_on_parent_exit,
    make_build_label,
)

if TYPE_CHECKING:
    from engine.model_cache.discovery import DiscoveredModel, LoadContext, ReportProgress

__all__ = ["JobRejected", "Stuck", "build_label", "load_all_models", "run_worker"]

log = logging.getLogger(__name__)

GRID_ROWS = 8  # rows of four images with guidance: with fewer, a worker could never announce room for a grid


@dataclass(frozen=True)
class WorkerModels:
    """The models that this worker offers, each with its calibration, and those that are in memory."""

    device: torch.device
    models: tuple[tuple[ModelEntry, Calibration], ...]
    model_store: LoadedModels
    check: PictureCheck | None = None
    upscaler: Upscaler = field(default_factory=Upscaler)
    upscale_ms: float = 0.0
    is_simulated: bool = False

    @property
    def rows(self) -> int:
        """The largest of the models' batch limits."""
        return max(self.batch_limits.values())

    @property
    def batch_limits(self) -> dict[str, int]:
        """The batch limit of each model: beyond it a step takes longer and gains nothing."""
        return {model.name: calibration.rows for model, calibration in self.models}

    @property
    def slowest_step_seconds(self) -> float:
        """Seconds of the slowest possible step of these models: all rows, at the largest size."""
        return max(
            self.rows * calibration.row_ms * model.profile.max_pixels / model.profile.size**2 / 1000
            for model, calibration in self.models
        )

    @property
    def row_ms_by_model(self) -> dict[str, float]:
        """Milliseconds a row-step of each model at its native size."""
        return {model.profile.name: calibration.row_ms for model, calibration in self.models}

    @property
    def forward_times(self) -> dict[str, dict[int, float]]:
        """Milliseconds of a forward of each model by its rows."""
        return {model.name: calibration.bucket_ms for model, calibration in self.models}

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """The calibration of each model; empty for a simulated device."""
        return {} if self.is_simulated else {model.name: calibration for model, calibration in self.models}

    def build_offer(self, settings: WorkerSettings) -> WorkerProfile:
        """Return what a worker with these models and settings announces."""
        device = f"{self.device.type}: {read_device_name(self.device)}"[:128]
        model_profiles = tuple(model.profile for model, _ in self.models)
        return WorkerProfile(
            settings.worker_name,
            device,
            max(self.rows, GRID_ROWS),
            model_profiles,
            settings.pools,
            build_label(),
            self.check is not None,
            self.upscale_ms,
        )


def load_all_models(settings: WorkerSettings) -> WorkerModels:
    """Load the models. Blocks for seconds to minutes, or as long as a download takes. Raises `JobRejected`."""
    return load_startup_models(settings, *discover_models(settings))


def discover_models(settings: WorkerSettings) -> tuple[LoadContext, list[DiscoveredModel]]:
    """Find the models, downloading those on the hub, which may take long. Raises `JobRejected`."""
    from engine.model_cache.discovery import (  # imports every model family, which takes seconds
        LoadContext,
        discover_models,
    )
    from engine.model_cache.offered_models import choose_models

    device = choose_device() if settings.device == "auto" else torch.device(settings.device)
    resolver = SuperResolver.load(settings.upscaler, device)
    budget = settings.memory or model_budget(device)
    model_dirs = LoadContext(
        settings.data,
        device,
        resolver,
        build_label(),
        settings.cuda_graphs,
        settings.offload,
        budget,
        settings.vae,
        settings.quantization_requests,
    )
    return model_dirs, discover_models(choose_models(settings.models, model_dirs, budget), model_dirs)


def load_startup_models(
    settings: WorkerSettings,
    model_dirs: LoadContext,
    discovered: Sequence[DiscoveredModel],
    on_progress: ReportProgress = lambda _: None,
) -> WorkerModels:
    """Load the models that must be in memory from the start. Raises `JobRejected`."""
    from engine.model_cache.discovery import load_models

    check = load_check(settings.check, model_dirs.device)
    model_store = LoadedModels(settings.memory or model_budget(model_dirs.device))
    models = load_models(discovered, model_dirs, model_store, on_progress)
    upscaler = Upscaler(model_dirs.resolver)
    return WorkerModels(
        model_dirs.device, tuple(models), model_store, check, upscaler, upscaler.measure_ms_per_megapixel()
    )


def simulate_models(simulation: SimulationSettings) -> WorkerModels:
    """Return a simulated device with its one model: loads and measures nothing."""
    from engine.worker import simulated_model

    torch.set_num_threads(1)  # many such workers share a machine, and none computes
    family = simulated_model.SimulatedModel(simulation.row_ms)
    calibration = simulated_model.build_calibration(simulation.row_ms, simulation.rows)
    model = simulated_model.build_cache_model(family, calibration)
    model_store = LoadedModels(model.size)
    model_store.reserve(model.name, model.size)
    model_store.add(model.name, family)
    return WorkerModels(family.device, ((model, calibration),), model_store, is_simulated=True)


def load_check(check_settings: PictureCheckSettings | None, device: torch.device) -> PictureCheck | None:
    """Return the picture check if the settings name one. Raises `JobRejected`."""
    if check_settings is None:
        return None
    check = PictureCheck.load(check_settings.folder, check_settings.labels, check_settings.threshold, device)
    log.info("%s checks pictures for: %s", check.name, ", ".join(check.labels))
    return check


def build_label() -> str:
    """Return the versions of this worker's software."""
    return make_build_label(f"torch {torch.__version__}")


async def run_worker(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT, then hand all jobs back. Raises `Stuck`, `BrokerUnreachable` or `JobRejected`."""
    limit_heap_arenas()
    exempt_from_collection()
    token = settings.nats_token.get_secret_value()
    key = settings.nats_key.get_secret_value()
    bus = await Bus.connect(settings.nats, token, name=settings.worker_name, key=key, ca_file=settings.nats_ca)
    try:
        await bus.declare(settings.pools)
        startup = StartupProgress(bus, settings.worker_name, settings.pools)
        async with startup.publish_during():
            loaded = await _load_with_timeout(settings, startup.update)
        await _serve_embed(bus)
        await _run_jobs(bus, loaded, settings)
    finally:
        await bus.close()


async def _load_with_timeout(settings: WorkerSettings, on_progress: ReportProgress = lambda _: None) -> WorkerModels:
    if settings.simulated is not None:
        return simulate_models(settings.simulated)
    # Outside the timeout: the hub may be slow.
    model_dirs, discovered = await asyncio.to_thread(discover_models, settings)
    progress_lines = ProgressLines(log.info, str(model_dirs.device))

    def on_load_progress(progress: ModelProgress) -> None:
        on_progress(progress)
        progress_lines.update(progress, time.monotonic())

    try:
        async with asyncio.timeout(DEADLINES["load"] * len(discovered)):
            return await compute_in_thread(load_startup_models, settings, model_dirs, discovered, on_load_progress)
    except TimeoutError as error:
        raise Stuck("Loading the models took too long.") from error


async def _serve_embed(bus: Bus) -> None:
    embedder = Embedder()

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        return await compute_in_thread(embedder, texts)

    await bus.serve_embed(embed)


async def _run_jobs(bus: Bus, loaded: WorkerModels, settings: WorkerSettings) -> None:
    model_cache = ModelCache([model for model, _ in loaded.models], loaded.model_store)
    engine = Engine(
        model_cache.families,
        rows=loaded.rows,
        row_ms_by_model=loaded.row_ms_by_model,
        batch_limits=loaded.batch_limits,
        forward_times=loaded.forward_times,
    )
    is_on_cpu = loaded.device.type == "cpu" and settings.simulated is None
    decode_worker = DecodeWorker(
        model_cache.families, loaded.check, MapStore(settings.data), CoreTurns(is_shared=is_on_cpu)
    )
    for name in list(model_cache.families):
        decode_worker.prepare_preview(name)
    worker = Worker(
        bus,
        engine,
        decode_worker,
        loaded.build_offer(settings),
        Watchdog(loaded.slowest_step_seconds),
        loaded.upscaler,
        model_cache,
        loaded.calibrations,
    )
    with SignalHandlers(worker.drain):
        parent_watch = asyncio.create_task(act_on_parent_exit(settings.parent, worker.drain))
        try:
            await worker.run()
        finally:
            parent_watch.cancel()


PROGRESS_SECONDS = 0.5  # between two progress messages of a start


class StartupProgress:
    """Publishes this worker's start-up progress."""

    def __init__(self, bus: Bus, name: str, pools: Sequence[str]) -> None:
        self._bus = bus
        self._name = name
        self._pools = pools
        self._latest = ModelProgress()

    def update(self, progress: ModelProgress) -> None:
        """Store the newest progress; called in the loading thread."""
        self._latest = progress

    @asynccontextmanager
    async def publish_during(self) -> AsyncGenerator[None]:
        """Publish the progress repeatedly while the body runs, and once when it has succeeded."""
        task = asyncio.create_task(self._publish_repeatedly())
        try:
            yield
            await self._publish()
        finally:
            task.cancel()

    async def _publish_repeatedly(self) -> None:
        while True:
            await self._publish()
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _publish(self) -> None:
        try:
            await self._bus.publish_progress(self._name, self._pools, self._latest)
        except BrokerUnreachable as error:
            log.debug("%s", error)
