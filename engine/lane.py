"""The decode worker: a thread that turns the engine's events into previews, pictures and ladders.

On a CPU decodes and steps take turns, each with all cores (`engine.cores`); on a GPU they run side by side. It decodes
one thing at a time: finished pictures first, then previews, then ladders. If nothing waits, it fits preview maps bit by
bit. A picture depends on its recipe and latents alone.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from queue import PriorityQueue
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from PIL.Image import Image

from engine import job as wire
from engine.admit import check
from engine.beginning import Beginning, read, whole
from engine.blame import unforeseen
from engine.cores import Cores, Kind
from engine.encode import half_bytes, jpeg, latent_bytes, parameters, png, thumbnail
from engine.engine import Developed, Stepped
from engine.families.family import SMALL, Family, is_here
from engine.finishing import developed, laid_over
from engine.job import Frame, Job, Ladder, Recipe, Verdict
from engine.map_files import MapFiles
from engine.picture_check import PictureCheck, Verdicts
from engine.preview import Previewer
from engine.trajectory import LatentRung
from engine.unfit import Unfit
from engine.watch import Watch

log = logging.getLogger(__name__)

PICTURE, FRAME, RUNG, CLOSE, FIT = range(5)
GLANCE = 0.05  # seconds that a fit waits for the cores, and all else in this thread for the fit
T = TypeVar("T")


class Lane:
    """Every method returns at once, with a `concurrent.futures.Future` for its result (`asyncio.wrap_future`)."""

    def __init__(
        self, families: Mapping[str, Family], check: PictureCheck | None = None, maps: MapFiles | None = None,
        cores: Cores | None = None,
    ) -> None:  # fmt: skip
        self._families, self._maps, self.cores = families, maps, cores or Cores()
        self.checks = check is not None
        self._verdicts = Verdicts(check, self.cores)  # used only in the thread
        self._previewers: WeakKeyDictionary[Family, Previewer] = WeakKeyDictionary()  # weak: a model may be evicted
        self.on_picture: Callable[[Recipe, float], None] = lambda recipe, ms: None  # called in the thread
        self._queue: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        self._order = itertools.count()
        self._under: dict[str, Beginning] = {}  # by job; used only in the thread
        self._prepared: WeakSet[Family] = WeakSet()  # used only in the thread; what follows, only by the caller
        self._frames: dict[tuple[str, int], Future[Frame]] = {}
        self._thread = threading.Thread(target=self._run, args=(torch.get_num_threads(),), name="lane", daemon=True)
        self._thread.start()

    def prepare(self, model: str) -> None:
        """Fit a preview map for a model that is now in memory, bit by bit while nothing else waits."""
        self._submit(FIT, lambda: self._prepare(model))

    def begin(self, job: Job, blobs: Mapping[str, bytes]) -> Future[Beginning | None]:
        """Encode a job's init images from its blobs (by SHA-256); None: pure noise. The future may raise `Unfit`.

        With a mask, the init image is kept until the job is forgotten, for compositing.
        """
        return self._submit(PICTURE, lambda: self._begin(job, blobs))

    def latents(self, model: str, picture: bytes) -> Future[torch.Tensor]:
        """Encode an image for `/describe` at the model's native size. The future may raise `Unfit`."""
        return self._submit(FRAME, lambda: self._foreseen(model, partial(whole, picture)))

    def frame(self, event: Stepped, job: Job, epoch: int, seconds_left: float) -> Future[Frame]:
        """Render a live preview. It replaces one that still waits for the same image: only the newest counts."""
        waiting = self._frames.get((event.job, event.image))
        if waiting is not None:
            waiting.cancel()
        future = self._submit(FRAME, lambda: self._frame(event, job, epoch, seconds_left))
        self._frames[event.job, event.image] = future
        return future

    def picture(self, event: Developed, job: Job) -> Future[bytes]:
        """Return the finished PNG: the same bytes for the same recipe and latents."""
        return self._submit(PICTURE, lambda: self._picture(event, job))

    def verdict(self, content: bytes, job: Job) -> Future[Verdict]:
        """Check a finished picture; "unchecked" if the job does not ask for it, or if the check failed."""
        return self._submit(PICTURE, lambda: self._verdicts.final(job, content))

    def ladder(self, event: Developed, job: Job, *, closely: bool = False) -> Future[bytes]:
        """Return the encoded `Ladder`. `closely`: it is for a film, so decode the keyframes of a small model."""
        return self._submit(RUNG, lambda: self._ladder(event, job, closely))

    def decode_thumbnail(self, model: str, x0: torch.Tensor, tile: bool) -> Future[bytes]:
        """Decode one keyframe for a close look. The future may raise `Unfit`."""
        return self._submit(RUNG, lambda: self._foreseen(model, partial(_decoded_thumbnail, x0, tile)))

    def forget(self, job: str) -> None:
        """Cancel everything that waits for a job that has left."""
        for key in [key for key in self._frames if key[0] == job]:
            self._frames.pop(key).cancel()
        self._submit(PICTURE, lambda: self._under.pop(job, None))  # queued, in case the job comes once more
        self._submit(RUNG, lambda: self._verdicts.forget(job))

    def close(self) -> None:
        """Finish the waiting work, then end the thread."""
        self._submit(CLOSE, self._end)
        self._thread.join()

    def _submit(self, priority: int, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((priority, next(self._order), lambda: _fulfil(future, work)))
        return future

    def _run(self, cores: int) -> None:
        torch.set_num_threads(cores)  # a fixed number: another one gives other last bits
        self._open = True
        while self._open:
            _, _, work = self._queue.get()
            work()

    def _end(self) -> None:
        self._open = False

    def _begin(self, job: Job, blobs: Mapping[str, bytes]) -> Beginning | None:
        recipe = _recipe(job)
        if recipe.start is None:
            return None
        check(job, self._families)
        found = self._foreseen(recipe.model, partial(read, recipe, blobs))
        if found is not None and found.picture is not None:
            self._under[job.id] = found
        return found

    def _foreseen(self, model: str, work: Callable[[Family], T]) -> T:
        """Run work on an uploaded image. Raises `Unfit` for anything that goes wrong, or `DeviceLost`."""
        family = self._families[model]
        try:
            with self.cores.held(Kind.OTHER):
                return work(family)
        except Unfit:
            raise
        except Exception as error:
            raise unforeseen(error, family.device) from error

    def _frame(self, event: Stepped, job: Job, epoch: int, seconds_left: float) -> Frame:
        x0, recipe = event.x0, _recipe(job)
        assert x0 is not None, "only a watched job's steps carry x0"
        verdict = self._verdicts.early(job, event.image, event.k / event.of, lambda: self._estimate(recipe, x0))
        picture = self._preview(recipe, x0)
        return Frame(
            job=event.job, image=event.image, epoch=epoch, step=event.k, of=event.of,
            picture=jpeg(picture), seconds_left=max(0.0, seconds_left), verdict=verdict,
        )  # fmt: skip

    def _preview(self, recipe: Recipe, x0: torch.Tensor) -> Image:
        """Render with the map, which is too cheap to wait for the cores; decode latents that the map does not fit."""
        previewer = self._previewer(recipe.model)
        if previewer.reads(x0):
            return developed(previewer.picture, x0, recipe.tile)
        return self._decode(recipe, x0)

    def _decode(self, recipe: Recipe, x0: torch.Tensor) -> Image:
        return developed(partial(self._estimate, recipe), x0, recipe.tile)

    def _estimate(self, recipe: Recipe, x0: torch.Tensor) -> Image:
        with self.cores.held(Kind.OTHER):
            return self._families[recipe.model].decode(x0)

    def _previewer(self, model: str) -> Previewer:
        """Return the previewer of the model that is in memory now."""
        family = self._families[model]
        if family not in self._previewers:
            self._previewers[family] = Previewer(family, self._maps)
        return self._previewers[family]

    def _prepare(self, model: str) -> None:
        family = self._families.get(model)
        if family is not None and family not in self._prepared:
            self._prepared.add(family)
            self._fit(model)

    def _fit(self, model: str) -> None:
        """Encode one picture of the fit, then requeue the rest behind newer work.

        While a model is being loaded in another number format it has no encoder; its next job resumes the fit.
        """
        family = self._families.get(model)
        if family is None or self._previewer(model).is_fitted:
            return
        with self.cores.spared(GLANCE) as free:
            if not is_here(family):
                self._prepared.discard(family)
                return
            if free:
                self._previewer(model).fit_on()
        self._submit(FIT, lambda: self._fit(model))

    def _picture(self, event: Developed, job: Job) -> bytes:
        recipe = _recipe(job)
        family = self._families[recipe.model]
        with self.cores.held(Kind.PICTURE):
            watch = Watch()
            picture = developed(family.finish, event.latents, recipe.tile)
            self.on_picture(recipe, watch.ms())
        picture = laid_over(picture, self._under.get(job.id))
        factor = picture.width // recipe.width
        return png(picture, parameters(recipe, event.image, family.revision, factor, family.upscaler))

    def _ladder(self, event: Developed, job: Job, closely: bool) -> bytes:
        recipe = _recipe(job)
        decoded = closely and self._families[recipe.model].size <= SMALL
        look = partial(self._decode if decoded else self._preview, recipe)
        mapped = not decoded and self._previewer(recipe.model).reads(event.latents)
        rungs = tuple(_wired(rung, thumbnail(look(rung.x0)), mapped) for rung in event.rungs)
        of, shape = recipe.steps, tuple(event.latents.shape)
        return wire.encode(Ladder(job=event.job, image=event.image, of=of, shape=shape, rungs=rungs))


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Unfit as error:  # the input is at fault, so no log entry
        future.set_exception(error)
    except Exception as error:  # other jobs go on; the future carries this job's error
        log.exception("the decode worker failed at one item")
        future.set_exception(error)


def _wired(rung: LatentRung, seen: bytes, mapped: bool) -> wire.Rung:
    """Return the wire form. `mapped`: a linear map made the thumbnail, so keep x0 to decode it on request."""
    history = None if rung.x is None else latent_bytes(rung.x0)
    estimate = half_bytes(rung.x0) if mapped else None
    return wire.Rung(rung.step, seen, latent_bytes(rung.x), history, rung.drawn, estimate)


def _decoded_thumbnail(x0: torch.Tensor, tile: bool, family: Family) -> bytes:
    return thumbnail(developed(family.decode, x0.to(family.device), tile))


def _recipe(job: Job) -> Recipe:
    assert isinstance(job.task, Recipe), "only a recipe's job has events"
    return job.task
