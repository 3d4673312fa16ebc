"""Runs one worker process: connects to the broker, loads the models, and works until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

from engine.budget import share
from engine.bus import Bus, Unreachable
from engine.calibration import Calibration, device_name
from engine.config import Checking, Settings, Simulation
from engine.cores import Cores
from engine.device import best
from engine.engine import Engine
from engine.job import ModelProgress
from engine.lane import Lane
from engine.map_files import MapFiles
from engine.memory import use_few_arenas
from engine.picture_check import PictureCheck
from engine.progress_lines import ProgressLines
from engine.shelf import Model, Shelf
from engine.shelf.stock import Stock
from engine.super_resolver import SuperResolver
from engine.unfit import Unfit
from engine.upscale import Upscaler
from engine.worker import Offer, Stuck, Worker
from engine.worker.embedding import Embedder
from engine.worker.pulse import DEADLINES, Pulse

if TYPE_CHECKING:
    from engine.shelf.offering import Found, Place, Tell

log = logging.getLogger(__name__)

PARENT_SECONDS = 0.5  # between two checks of the parent process
SAY_SECONDS = 0.5  # between two progress messages of a start
ONE_GRID = 8  # rows of four images with guidance: with fewer, a worker could never announce room for a grid


@dataclass(frozen=True)
class Ready:
    """What this worker offers: each model with its calibration, and the memory stock."""

    device: torch.device
    models: tuple[tuple[Model, Calibration], ...]
    stock: Stock
    check: PictureCheck | None = None
    upscaler: Upscaler = field(default_factory=Upscaler)
    enlarge_ms: float = 0.0
    simulated: bool = False

    @property
    def rows(self) -> int:
        """The largest of the models' batch limits."""
        return max(self.caps.values())

    @property
    def caps(self) -> dict[str, int]:
        """The batch limit of each model: beyond it a step takes longer and gains nothing."""
        return {model.name: calibration.rows for model, calibration in self.models}

    @property
    def slowest(self) -> float:
        """Seconds of the slowest possible step of these models: all rows, at the largest size."""
        return max(
            self.rows * found.row_ms * model.warm.max_pixels / model.warm.size**2 / 1000 for model, found in self.models
        )

    @property
    def prices(self) -> dict[str, float]:
        """Milliseconds a row-step of each model at its native size."""
        return {model.warm.name: found.row_ms for model, found in self.models}

    @property
    def times(self) -> dict[str, dict[int, float]]:
        """Milliseconds of a forward of each model by its rows."""
        return {model.name: found.bucket_ms for model, found in self.models}

    @property
    def found(self) -> dict[str, Calibration]:
        """The calibration of each model; empty for a simulated device."""
        return {} if self.simulated else {model.name: found for model, found in self.models}

    def offer(self, settings: Settings) -> Offer:
        device = f"{self.device.type}: {device_name(self.device)}"[:128]
        warm = tuple(model.warm for model, _ in self.models)
        return Offer(
            settings.name, device, max(self.rows, ONE_GRID), warm, settings.pools, build(), self.check is not None,
            self.enlarge_ms,
        )  # fmt: skip


def load_models(settings: Settings) -> Ready:
    """Load the models. Blocks for seconds to minutes, or as long as a download takes. Raises `Unfit`."""
    return opened(settings, *found(settings))


def found(settings: Settings) -> tuple[Place, list[Found]]:
    """Find the models, downloading those on the hub, which may take long. Raises `Unfit`."""
    from engine.shelf.offering import Place, find_all  # imports every model family, which takes seconds

    device = best() if settings.device == "auto" else torch.device(settings.device)
    resolver = SuperResolver.find(settings.upscaler, device)
    place = Place(settings.data, device, resolver, build(), settings.graphs, settings.offload)
    return place, find_all(settings.models, place)


def opened(settings: Settings, place: Place, known: Sequence[Found], tell: Tell = lambda _: None) -> Ready:
    """Load the models that must be in memory from the start. Raises `Unfit`."""
    from engine.shelf.offering import stocked

    check = load_check(settings.check, place.device)
    stock = Stock(settings.memory or share(place.device))
    models = stocked(known, place, stock, tell)
    upscaler = Upscaler(place.resolver)
    return Ready(place.device, tuple(models), stock, check, upscaler, upscaler.measure())


def pretended(simulation: Simulation) -> Ready:
    """Return a simulated device with its one model: loads and measures nothing."""
    from engine import simulated

    torch.set_num_threads(1)  # many such workers share a machine, and none computes
    family = simulated.Simulated(simulation.row_ms)
    found = simulated.calibration(simulation.row_ms, simulation.rows)
    model = simulated.offered(family, found)
    stock = Stock(model.size)
    stock.reserve(model.name, model.size)
    stock.put(model.name, family)
    return Ready(family.device, ((model, found),), stock, simulated=True)


def load_check(wanted: Checking | None, device: torch.device) -> PictureCheck | None:
    """Return the picture check if the settings name one. Raises `Unfit`."""
    if wanted is None:
        return None
    check = PictureCheck.load(wanted.folder, wanted.labels, wanted.threshold, device)
    log.info("%s checks pictures for: %s", check.name, ", ".join(check.labels))
    return check


def build() -> str:
    """Return the versions of this worker's software: pictures are bit-identical only within one build."""
    try:
        own = version("darkroom-bot")
    except PackageNotFoundError:
        own = "source"
    return f"darkroom {own}, torch {torch.__version__}"[:128]


async def serve(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then hand all jobs back. Raises `Stuck`, `Unreachable` or `Unfit`."""
    use_few_arenas()
    token, key = settings.nats_token.get_secret_value(), settings.nats_key.get_secret_value()
    bus = await Bus.connect(settings.nats, token, name=settings.name, key=key, authority=settings.nats_ca)
    try:
        await bus.declare(settings.pools)
        start = Start(bus, settings.name, settings.pools)
        async with start.saying():
            ready = await _loaded(settings, start.hear)
        await _serve_embed(bus)
        await _work(bus, ready, settings)
    finally:
        await bus.close()


class Start:
    """Publishes this worker's start-up progress."""

    def __init__(self, bus: Bus, name: str, pools: Sequence[str]) -> None:
        self._bus, self._name, self._pools = bus, name, pools
        self._now = ModelProgress()

    def hear(self, progress: ModelProgress) -> None:
        """Store the newest progress; called in the loading thread."""
        self._now = progress

    @asynccontextmanager
    async def saying(self) -> AsyncIterator[None]:
        """Publish the progress repeatedly while the body runs, and once when it has succeeded."""
        task = asyncio.create_task(self._say_on())
        try:
            yield
            await self._say()
        finally:
            task.cancel()

    async def _say_on(self) -> None:
        while True:
            await self._say()
            await asyncio.sleep(SAY_SECONDS)

    async def _say(self) -> None:
        try:
            await self._bus.publish_progress(self._name, self._pools, self._now)
        except Unreachable as error:
            log.debug("%s", error)


async def _loaded(settings: Settings, tell: Tell = lambda _: None) -> Ready:
    if settings.simulated is not None:
        return pretended(settings.simulated)
    place, known = await asyncio.to_thread(found, settings)  # outside the timeout: the hub may be slow
    lines = ProgressLines(log.info, str(place.device))

    def hear(progress: ModelProgress) -> None:
        tell(progress)
        lines.hear(progress, time.monotonic())

    try:
        async with asyncio.timeout(DEADLINES["load"] * len(settings.models)):
            return await asyncio.to_thread(opened, settings, place, known, hear)
    except TimeoutError as error:
        raise Stuck("Loading the models took too long.") from error


async def _serve_embed(bus: Bus) -> None:
    embedder = Embedder()

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        return await asyncio.to_thread(embedder, texts)

    await bus.serve_embed(embed)


async def _work(bus: Bus, ready: Ready, settings: Settings) -> None:
    shelf = Shelf([model for model, _ in ready.models], ready.stock)
    engine = Engine(shelf.families, rows=ready.rows, prices=ready.prices, caps=ready.caps, times=ready.times)
    computes = ready.device.type == "cpu" and settings.simulated is None
    lane = Lane(shelf.families, ready.check, MapFiles(settings.data), Cores(shared=computes))
    for name in list(shelf.families):
        lane.prepare(name)
    worker = Worker(bus, engine, lane, ready.offer(settings), Pulse(ready.slowest), ready.upscaler, shelf, ready.found)
    with _signals(worker.drain):
        watch = asyncio.create_task(_end_with(settings.parent, worker.drain))
        try:
            await worker.run()
        finally:
            watch.cancel()


async def _end_with(parent: int, act: Callable[[], None]) -> None:
    """Call `act` once the parent process has died: nothing else would ever stop this worker."""
    if not parent:
        return
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_SECONDS)
    log.warning("the parent process %d of this worker has ended", parent)
    act()


class _signals:
    """While active, SIGTERM and SIGINT call `act` and do not end the process."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self._act)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sign)


__all__ = ["Stuck", "Unfit", "build", "load_models", "serve"]
