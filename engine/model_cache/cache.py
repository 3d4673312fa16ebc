"""Model cache: several models within one memory budget, loaded on demand and kept while there is room.

Loading runs in a separate thread, one model at a time, while the engine runs other models. `LoadedModels` decides which
model it evicts.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from msgspec.structs import replace

from engine.calibration.calibration import Calibration
from engine.contract import Dtype, JobRejected, ModelProfile, ModelProgress, Recipe
from engine.device.core_turns import limit_to_one_core
from engine.device.memory import is_out_of_memory
from engine.model_cache.loaded_models import LoadedModels
from engine.models.family import Family, HasSingleFormat, TakesAutoencoders
from engine.models.picture_conditions import TakesPictures
from engine.process.load_progress import ProgressLines, format_size

if TYPE_CHECKING:
    from engine.models.loading.pipeline_loader import OnProgress

log = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 20.0  # seconds; a job that has waited longer for memory goes before new jobs of loaded models
RECHECK_SECONDS = 1.0


@dataclass
class ModelEntry:
    """A model that this worker offers. `size`: bytes. `load` loads it; `make_info` returns its announcement."""

    name: str
    size: int
    profile: ModelProfile
    load: Callable[[OnProgress], Family]
    make_info: Callable[[Family], ModelProfile]
    save_calibration: Callable[[Calibration, Family], None] = lambda calibration, family: None
    size_by_format: Mapping[Dtype, int] = field(default_factory=dict[Dtype, int])  # bytes, of a large model
    waiting_jobs: int = 0  # jobs that wait for it
    loaded_fraction: float = 0.0  # loaded fraction, while it is loading
    is_unused: bool = False  # loaded for a waiting job, and not used yet
    loading_task: asyncio.Task[None] | None = None


class ModelCache:
    """Belongs to the event loop, except `families`, which any thread may read, and `update_calibration`."""

    def __init__(
        self, models: list[ModelEntry], loaded_models: LoadedModels, loader: ModelLoader | None = None
    ) -> None:
        self._models = {model.name: model for model in models}
        self._loaded_models = loaded_models
        self.loader = loader or ModelLoader()
        self.families = loaded_models.families
        self.on_change: Callable[[], None] = lambda: None
        self.progress: ModelProgress | None = None  # of the model that is loading, or was loaded last
        self._progress_lines = ProgressLines(log.info)
        self._load_lock = asyncio.Lock()
        self._change_event = asyncio.Event()
        self._wait_starts: dict[object, float] = {}  # start (monotonic) of each wait for memory in use

    def list_models(self) -> tuple[ModelProfile, ...]:
        """Return the announcement of each model."""
        return tuple(_with_loaded(model.profile, model.name in self.families) for model in self._models.values())

    def get_loaded_fraction(self, name: str) -> float | None:
        """Return a model's loaded fraction, 0 to 1; None for an unknown model."""
        model = self._models.get(name)
        return model and model.loaded_fraction

    def update_calibration(self, name: str, calibration: Calibration) -> None:
        """Announce and save a calibration from real work. Blocks for a file."""
        model = self._models.get(name)
        family = self.families.get(name)
        if model is not None and family is not None:
            model.profile = calibration.with_current_costs(model.profile)
            model.save_calibration(calibration, family)

    async def acquire(self, name: str, dtype: Dtype, recipe: Recipe | None = None) -> bool:
        """Wait until the model is in memory, with room for what `recipe` adds, and keep it there until `release`.

        Returns False for an unknown model, which needs no `release`. Raises `JobRejected` where loading fails.
        """
        model = self._models.get(name)
        if model is None:
            return False
        model.waiting_jobs += 1
        try:
            await self._wait_until_ready(model, dtype, recipe)
            self._loaded_models.acquire(name)
            family = self.families[name]
            if isinstance(family, HasSingleFormat) and family.is_single_format:  # other jobs may need another format
                model.is_unused = False
        finally:
            model.waiting_jobs -= 1
            model.is_unused = False if model.waiting_jobs == 0 else model.is_unused
        return True

    def is_memory_contended(self, waiter: object = None) -> bool:
        """Whether somebody has waited too long for models in use, and longer than `waiter`."""
        own_start = self._wait_starts.get(waiter, math.inf)
        return any(
            time.monotonic() - start > MAX_WAIT_SECONDS and start < own_start for start in self._wait_starts.values()
        )

    def release(self, name: str) -> None:
        """Release a model after its job has left the engine."""
        self._loaded_models.release(name)
        self._notify_change()

    async def close(self) -> None:
        """End all waits. A thread that still loads ends with the process."""
        tasks = [model.loading_task for model in self._models.values() if model.loading_task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_until_ready(self, model: ModelEntry, dtype: Dtype, recipe: Recipe | None) -> None:
        waiter = object()
        try:
            while True:
                if model.loading_task is not None:
                    with suppress(LoadAbandoned):
                        await asyncio.shield(model.loading_task)
                elif self._is_ready(model, dtype):
                    added = await self._count_additions(model, recipe)
                    if model.loading_task is not None or not self._is_ready(model, dtype):
                        continue  # it was dropped meanwhile
                    if not self._reserve_additions(model, dtype, added):
                        if await self._release_others(model, recipe, added):
                            continue
                        self._wait_starts.setdefault(waiter, time.monotonic())
                    elif model.is_unused or not self.is_memory_contended(waiter):
                        return
                    await self._wait_for_change()
                elif self._loaded_models.count_users(model.name):  # by jobs in another number format
                    self._wait_starts.setdefault(waiter, time.monotonic())
                    await self._wait_for_change()
                else:
                    self._wait_starts.pop(waiter, None)
                    self._start_loading(model, dtype)
        finally:
            self._wait_starts.pop(waiter, None)

    def _is_ready(self, model: ModelEntry, dtype: Dtype) -> bool:
        family = self.families.get(model.name)
        return family is not None and (not isinstance(family, HasSingleFormat) or family.has_format(dtype))

    async def _count_additions(self, model: ModelEntry, recipe: Recipe | None) -> AddedBytes:
        if recipe is None or not (recipe.autoencoder or recipe.controls or recipe.references):
            return AddedBytes(0, 0)
        return await asyncio.to_thread(count_added_bytes, self.families[model.name], recipe)

    def _reserve_additions(self, model: ModelEntry, dtype: Dtype, added: AddedBytes) -> bool:
        """Make room for what a recipe adds to the model; return whether there is. Raises `JobRejected`.

        It is refused only where it does not fit alone: what other recipes have left loaded can go.
        """
        if not added.own:
            return True
        size = model.size_by_format.get(dtype, model.size)
        budget = self._loaded_models.budget
        if size + added.own > budget:
            raise make_too_large_error(f"{model.name} with what this job adds to it", size + added.own, budget)
        return self._loaded_models.reserve(model.name, size + added.total, self._list_protected(), added.shared)

    async def _release_others(self, model: ModelEntry, recipe: Recipe | None, added: AddedBytes) -> bool:
        if recipe is None or added.total <= added.own or self._loaded_models.count_users(model.name):
            return False
        await asyncio.to_thread(release_other_additions, self.families[model.name], recipe)
        return True

    def _start_loading(self, model: ModelEntry, dtype: Dtype) -> None:
        model.loaded_fraction = 0.0
        model.loading_task = asyncio.create_task(self._load_or_reload(model, dtype))
        model.loading_task.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # retrieved: the waiters raise it

    async def _load_or_reload(self, model: ModelEntry, dtype: Dtype) -> None:
        try:
            async with self._load_lock:
                family = self.families.get(model.name)
                if isinstance(family, HasSingleFormat):
                    await self._reload(model, family, dtype)
                else:
                    await self._load_model(model)
        finally:
            model.loading_task = None
            self._notify_change()

    async def _reload(self, model: ModelEntry, family: HasSingleFormat, dtype: Dtype) -> None:
        size = model.size_by_format.get(dtype, model.size)
        await self._reserve_memory(model, size)
        with self._reporting_context(model, size):
            await self.loader.run(model.name, lambda _: family.get_network(dtype))
        model.is_unused = model.waiting_jobs > 0

    async def _load_model(self, model: ModelEntry) -> None:
        await self._reserve_memory(model, model.size)
        try:
            with self._reporting_context(model, model.size):
                family, model.profile = await self.loader.run(
                    model.name, lambda report_activity: self._load_in_thread(model, report_activity)
                )
            self._loaded_models.add(model.name, family)
        except BaseException:
            self._loaded_models.cancel_reservation(model.name)
            raise
        model.is_unused = model.waiting_jobs > 0  # not if all waiters left while the last part was loading
        log.info(
            "%s is in memory, %s of %s taken",
            model.name,
            format_size(self._loaded_models.used_bytes),
            format_size(self._loaded_models.budget),
        )

    def _load_in_thread(self, model: ModelEntry, report_activity: Callable[[], None]) -> tuple[Family, ModelProfile]:
        def on_progress(fraction: float) -> None:
            if not model.waiting_jobs:
                raise LoadAbandoned
            model.loaded_fraction = fraction
            self._report(ModelProgress(model=model.name, phase="load", done=min(1.0, fraction), size=model.size))
            report_activity()

        family = model.load(on_progress)
        return family, model.make_info(family)

    @contextmanager
    def _reporting_context(self, model: ModelEntry, size: int) -> Generator[None]:
        """Report that the model is loading, then that it is ready, or nothing where it failed."""
        loading = ModelProgress(model=model.name, phase="load", size=size)
        self._report(loading)
        try:
            yield
        except BaseException:
            self.progress = None
            raise
        self._report(replace(loading, phase="ready", done=1.0))

    def _report(self, progress: ModelProgress) -> None:
        self.progress = progress
        self._progress_lines.update(progress, time.monotonic())

    async def _reserve_memory(self, model: ModelEntry, size: int) -> None:
        if size > self._loaded_models.budget:
            raise make_too_large_error(model.name, size, self._loaded_models.budget)
        waiter = object()
        try:
            while not self._loaded_models.reserve(model.name, size, self._list_protected()):
                if not model.waiting_jobs:
                    raise LoadAbandoned
                self._wait_starts.setdefault(waiter, time.monotonic())
                await self._wait_for_change()
        finally:
            self._wait_starts.pop(waiter, None)

    def _list_protected(self) -> frozenset[str]:
        return frozenset(model.name for model in self._models.values() if model.is_unused)

    def _notify_change(self) -> None:
        self._change_event.set()
        self._change_event = asyncio.Event()
        self.on_change()

    async def _wait_for_change(self) -> None:
        """Wait for the next change, or a second, since the wait may also be for time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._change_event.wait(), RECHECK_SECONDS)


def make_too_large_error(name: str, size: int, budget: int) -> JobRejected:
    return JobRejected(
        f"The model {name} needs about {format_size(size)} of memory, and models may take {format_size(budget)} here.",
        "worker",
    )


def _with_loaded(profile: ModelProfile, is_loaded: bool) -> ModelProfile:
    return profile if profile.loaded == is_loaded else replace(profile, loaded=is_loaded)


class AddedBytes(NamedTuple):
    """Bytes of added autoencoders and picture networks: a recipe's own, and all with those that others left loaded.

    `shared`: the part of all whose networks other models share, by a key for each network.
    """

    own: int
    total: int
    shared: Mapping[str, int] = MappingProxyType({})


def count_added_bytes(family: Family, recipe: Recipe) -> AddedBytes:
    """Return the bytes beside the model once a recipe's networks are loaded; 0: it has none. Raises `JobRejected`."""
    pictures = family if isinstance(family, TakesPictures) else None
    autoencoders = family if isinstance(family, TakesAutoencoders) else None
    if recipe.autoencoder is None and not (pictures and pictures.needs_pictures(recipe)):
        return AddedBytes(0, 0)

    def count(with_kept: bool) -> int:
        picture_bytes = pictures.count_picture_bytes(recipe, with_kept=with_kept) if pictures else 0
        part = recipe.autoencoder
        return picture_bytes + (autoencoders.count_autoencoder_bytes(part, with_kept=with_kept) if autoencoders else 0)

    shared = pictures.list_shared_bytes(recipe) if pictures else dict[str, int]()  # first, so the whole is not less
    return AddedBytes(count(with_kept=False), count(with_kept=True), shared)


def release_other_additions(family: Family, recipe: Recipe) -> None:
    """Drop the added autoencoders and picture networks in memory that a recipe does not use. Raises `JobRejected`."""
    if isinstance(family, TakesPictures):
        family.release_other_networks(recipe)
    if isinstance(family, TakesAutoencoders):
        family.release_other_autoencoders(recipe.autoencoder)


T = TypeVar("T")
ReportActivity = Callable[[], None]


class LoadAbandoned(Exception):
    """No job waits for the model any more."""


class ModelLoader:
    """Calls `report_activity` at the start and at every progress, and `report_idle` at the end."""

    def __init__(
        self, report_activity: ReportActivity = lambda: None, report_idle: ReportActivity = lambda: None
    ) -> None:
        self.report_activity = report_activity
        self.report_idle = report_idle

    async def run(self, name: str, work: Callable[[ReportActivity], T]) -> T:
        """Run `work` in a daemon thread. Turns every failure into a `JobRejected` with one sentence."""
        future: Future[T] = Future()
        cores = torch.get_num_threads()
        threading.Thread(
            target=self._run_in_thread, args=(future, name, work, cores), name="loader", daemon=True
        ).start()
        return await asyncio.wrap_future(future)

    def _run_in_thread(self, future: Future[T], name: str, work: Callable[[ReportActivity], T], cores: int) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self.report_activity()
        try:
            limit_to_one_core(cores)
            free_memory()
            future.set_result(work(self.report_activity))
        except (JobRejected, LoadAbandoned) as error:
            future.set_exception(error)
        except Exception as error:
            log.exception("%s could not be loaded", name)
            future.set_exception(_make_error(name, error))
        finally:
            self.report_idle()


def free_memory() -> None:
    """Free dropped models now: the next model needs their memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _make_error(name: str, error: Exception) -> JobRejected:
    if is_out_of_memory(error):
        return JobRejected(f"There is not enough memory to load the model {name}.", "worker")
    return JobRejected(f"The model {name} could not be loaded.", "worker")
