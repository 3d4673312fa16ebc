"""Model cache: several models within one memory budget, loaded on demand and kept while there is room.

Loading runs in a separate thread, one model at a time, while the engine runs other models. `Stock` decides what is
evicted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.calibration import Calibration
from engine.families.family import Family, HeldOnce
from engine.job import Dtype, ModelProgress, Warm
from engine.progress_lines import ProgressLines
from engine.shelf.loader import GivenUp, Loader
from engine.shelf.stock import Stock
from engine.sizes import said
from engine.unfit import Unfit

if TYPE_CHECKING:
    from engine.families.opening import Told

log = logging.getLogger(__name__)

TURN = 20.0  # seconds; a job that has waited longer for memory goes before new jobs of loaded models
LOOK = 1.0


@dataclass
class Model:
    """A model that this worker offers. `size`: bytes. `open` loads it; `renew` returns its announcement."""

    name: str
    size: int
    warm: Warm
    open: Callable[[Told], Family]
    renew: Callable[[Family], Warm]
    refine: Callable[[Calibration, Family], None] = lambda found, family: None  # saves a calibration
    sizes: Mapping[Dtype, int] = field(default_factory=dict[Dtype, int])  # of a large model: bytes in each format
    wanted: int = 0  # jobs that wait for it
    done: float = 0.0  # loaded fraction, while it is loading
    fresh: bool = False  # loaded for a waiting job, and not used yet
    opening: asyncio.Task[None] | None = None


class Shelf:
    """Belongs to the event loop, except `families`, which any thread may read, and `refine`."""

    def __init__(self, models: list[Model], stock: Stock, loader: Loader | None = None) -> None:
        self._models = {model.name: model for model in models}
        self._stock, self.loader = stock, loader or Loader()
        self.families = stock.families
        self.on_change: Callable[[], None] = lambda: None
        self.progress: ModelProgress | None = None  # of the model that is loading, or was loaded last
        self._lines = ProgressLines(log.info)
        self._one_at_a_time = asyncio.Lock()
        self._change = asyncio.Event()
        self._waiting: dict[object, float] = {}  # start (monotonic) of each wait for memory in use

    def warm(self) -> tuple[Warm, ...]:
        """Return the announcement of each model."""
        return tuple(_loaded(model.warm, model.name in self.families) for model in self._models.values())

    def done(self, name: str) -> float | None:
        """Return a model's loaded fraction, 0 to 1; None for an unknown model."""
        model = self._models.get(name)
        return model and model.done

    def refine(self, name: str, found: Calibration) -> None:
        """Announce and save a calibration from real work. Blocks for a file."""
        model, family = self._models.get(name), self.families.get(name)
        if model is not None and family is not None:
            model.warm = found.repriced(model.warm)
            model.refine(found, family)

    async def take(self, name: str, dtype: Dtype) -> bool:
        """Wait until the model is in memory, and keep it there until `let_go`. Raises `Unfit` where loading fails.

        Returns False for an unknown model, which needs no `let_go`.
        """
        model = self._models.get(name)
        if model is None:
            return False
        model.wanted += 1
        try:
            await self._until_ready(model, dtype)
            self._stock.hold(name)
            family = self.families[name]
            if isinstance(family, HeldOnce) and family.held_once:  # other jobs may need another format
                model.fresh = False
        finally:
            model.wanted -= 1
            model.fresh = False if model.wanted == 0 else model.fresh
        return True

    def crowded(self, me: object = None) -> bool:
        """Whether a waiter other than `me` has waited too long for models in use."""
        return any(time.monotonic() - since > TURN for who, since in self._waiting.items() if who is not me)

    def let_go(self, name: str) -> None:
        """Release a model after its job has left the engine."""
        self._stock.let_go(name)
        self._changed()

    async def close(self) -> None:
        """End all waiting. A thread that still loads ends with the process."""
        tasks = [model.opening for model in self._models.values() if model.opening is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_ready(self, model: Model, dtype: Dtype) -> None:
        me = object()
        try:
            while True:
                if model.opening is not None:
                    with suppress(GivenUp):
                        await asyncio.shield(model.opening)
                elif self._ready(model, dtype):
                    if model.fresh or not self.crowded(me):
                        return
                    await self._look_again()
                elif self._stock.users(model.name):  # by jobs in another number format
                    self._waiting.setdefault(me, time.monotonic())
                    await self._look_again()
                else:
                    self._waiting.pop(me, None)
                    self._begin(model, dtype)
        finally:
            self._waiting.pop(me, None)

    def _ready(self, model: Model, dtype: Dtype) -> bool:
        family = self.families.get(model.name)
        return family is not None and (not isinstance(family, HeldOnce) or family.holds(dtype))

    def _begin(self, model: Model, dtype: Dtype) -> None:
        model.done = 0.0
        model.opening = asyncio.create_task(self._open(model, dtype))
        model.opening.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # retrieved: the waiters raise it

    async def _open(self, model: Model, dtype: Dtype) -> None:
        try:
            async with self._one_at_a_time:
                known = self.families.get(model.name)
                if isinstance(known, HeldOnce):
                    await self._reopen(model, known, dtype)
                else:
                    await self._load(model)
        finally:
            model.opening = None
            self._changed()

    async def _reopen(self, model: Model, known: HeldOnce, dtype: Dtype) -> None:
        size = model.sizes.get(dtype, model.size)
        await self._room(model, size)
        with self._telling(model, size):
            await self.loader.run(model.name, lambda _: known.net(dtype))
        model.fresh = model.wanted > 0

    async def _load(self, model: Model) -> None:
        await self._room(model, model.size)
        try:
            with self._telling(model, model.size):
                family, model.warm = await self.loader.run(model.name, lambda beat: self._opened(model, beat))
            self._stock.put(model.name, family)
        except BaseException:
            self._stock.give_up(model.name)
            raise
        model.fresh = model.wanted > 0  # not if all waiters left while the last part was loading
        log.info("%s is in memory, %s of %s taken", model.name, said(self._stock.taken), said(self._stock.budget))

    def _opened(self, model: Model, beat: Callable[[], None]) -> tuple[Family, Warm]:
        """Load the model, in the loader's thread."""

        def told(done: float) -> None:
            if not model.wanted:
                raise GivenUp
            model.done = done
            self._tell(ModelProgress(model=model.name, phase="load", done=min(1.0, done), size=model.size))
            beat()

        family = model.open(told)
        return family, model.renew(family)

    @contextmanager
    def _telling(self, model: Model, size: int) -> Iterator[None]:
        """Report that the model is loading, then that it is ready, or nothing where it failed."""
        loading = ModelProgress(model=model.name, phase="load", size=size)
        self._tell(loading)
        try:
            yield
        except BaseException:
            self.progress = None
            raise
        self._tell(replace(loading, phase="ready", done=1.0))

    def _tell(self, progress: ModelProgress) -> None:
        self.progress = progress
        self._lines.hear(progress, time.monotonic())

    async def _room(self, model: Model, size: int) -> None:
        if size > self._stock.budget:
            raise too_large(model.name, size, self._stock.budget)
        me = object()
        try:
            while not self._stock.reserve(model.name, size, self._spared()):
                if not model.wanted:
                    raise GivenUp
                self._waiting.setdefault(me, time.monotonic())
                await self._look_again()
        finally:
            self._waiting.pop(me, None)

    def _spared(self) -> frozenset[str]:
        """Return models that were loaded for a job that has not used them yet."""
        return frozenset(model.name for model in self._models.values() if model.fresh)

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
        self.on_change()

    async def _look_again(self) -> None:
        """Wait for the next change, or a second, since the wait may also be for time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), LOOK)


def too_large(name: str, size: int, budget: int) -> Unfit:
    return Unfit(
        f"The model {name} needs about {said(size)} of memory, and models may take {said(budget)} here.", "worker"
    )


def _loaded(warm: Warm, here: bool) -> Warm:
    return warm if warm.loaded == here else replace(warm, loaded=here)
