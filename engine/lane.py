"""The decode lane: turns the engine's events into frames, pictures and ladders, in a thread of its own.

On a processor decodes and steps take turns, each with all cores (`engine.cores`); on a card they run side by side. One
thing is decoded at a time: finished pictures first, then frames, then ladders; last, while nothing else waits, a bit of
a map for previews. Pictures are a function of recipe and latents alone.
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
    """Every method returns at once; what it promises comes in a `concurrent.futures.Future` (`asyncio.wrap_future`)."""

    def __init__(
        self, families: Mapping[str, Family], check: PictureCheck | None = None, maps: MapFiles | None = None,
        cores: Cores | None = None,
    ) -> None:  # fmt: skip
        self._families, self._maps, self.cores = families, maps, cores or Cores()
        self.checks = check is not None
        self._verdicts = Verdicts(check, self.cores)  # the lane's thread's
        self._previewers: WeakKeyDictionary[Family, Previewer] = WeakKeyDictionary()  # a model may be dropped
        self.on_picture: Callable[[Recipe, float], None] = lambda recipe, ms: None  # in the lane's thread
        self._queue: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        self._order = itertools.count()
        self._under: dict[str, Beginning] = {}  # of the job; the lane's thread's
        self._prepared: WeakSet[Family] = WeakSet()  # the lane's thread's; the rest is the caller's
        self._frames: dict[tuple[str, int], Future[Frame]] = {}
        self._thread = threading.Thread(target=self._run, args=(torch.get_num_threads(),), name="lane", daemon=True)
        self._thread.start()

    def prepare(self, model: str) -> None:
        """A model is in memory: its previews get a map of their own, a bit at a time, whenever nothing else waits."""
        self._submit(FIT, lambda: self._prepare(model))

    def begin(self, job: Job, blobs: Mapping[str, bytes]) -> Future[Beginning | None]:
        """What a job begins with, from its blobs (by SHA-256); None: noise. Its future may raise `Unfit`.

        Where it has a mask, it is kept until the job is forgotten, to be laid under what is painted.
        """
        return self._submit(PICTURE, lambda: self._begin(job, blobs))

    def latents(self, model: str, picture: bytes) -> Future[torch.Tensor]:
        """A picture that is only looked at, as a model's latents at its native size. Its future may raise `Unfit`."""
        return self._submit(FRAME, lambda: self._foreseen(model, partial(whole, picture)))

    def frame(self, event: Stepped, job: Job, epoch: int, seconds_left: float) -> Future[Frame]:
        """A live preview; one still waiting for the same image is cancelled, since only the newest counts."""
        waiting = self._frames.get((event.job, event.image))
        if waiting is not None:
            waiting.cancel()
        future = self._submit(FRAME, lambda: self._frame(event, job, epoch, seconds_left))
        self._frames[event.job, event.image] = future
        return future

    def picture(self, event: Developed, job: Job) -> Future[bytes]:
        """The finished PNG: the same bytes for the same recipe and latents."""
        return self._submit(PICTURE, lambda: self._picture(event, job))

    def verdict(self, content: bytes, job: Job) -> Future[Verdict]:
        """What the picture check says of a finished picture; "unchecked" where the job does not ask, or it failed."""
        return self._submit(PICTURE, lambda: self._verdicts.final(job, content))

    def ladder(self, event: Developed, job: Job, *, closely: bool = False) -> Future[bytes]:
        """The encoded `Ladder`. `closely`: its film is asked for, so a small model's rungs are decoded."""
        return self._submit(RUNG, lambda: self._ladder(event, job, closely))

    def decode_thumbnail(self, model: str, x0: torch.Tensor, tile: bool) -> Future[bytes]:
        """A rung that somebody looks at closely, decoded. Its future may raise `Unfit`."""
        return self._submit(RUNG, lambda: self._foreseen(model, partial(_decoded_thumbnail, x0, tile)))

    def forget(self, job: str) -> None:
        """The job has left: whatever still waits for it is cancelled."""
        for key in [key for key in self._frames if key[0] == job]:
            self._frames.pop(key).cancel()
        self._submit(PICTURE, lambda: self._under.pop(job, None))  # in turn, should it come once more
        self._submit(RUNG, lambda: self._verdicts.forget(job))

    def close(self) -> None:
        """Finish what is waiting, then end the thread."""
        self._submit(CLOSE, self._end)
        self._thread.join()

    def _submit(self, priority: int, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((priority, next(self._order), lambda: _fulfil(future, work)))
        return future

    def _run(self, cores: int) -> None:
        torch.set_num_threads(cores)  # not what another thread has just then: other numbers give other last bits
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
        """What becomes of a picture that was brought. Raises `Unfit` for whatever goes wrong, or `DeviceLost`."""
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
        """By the map, which costs too little to wait for the cores; latents that no map reads are decoded."""
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
        """That of the model as it is in memory now."""
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
        """One picture of the fit; the next comes after whatever has come meanwhile.

        A model that is just opened in another number format has no encoder: its next job goes on with the fit.
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
    except Unfit as error:  # what somebody brought, and no trouble of ours
        future.set_exception(error)
    except Exception as error:  # the lane serves many jobs: one job's error is that job's, and its future carries it
        log.exception("the lane could not encode")
        future.set_exception(error)


def _wired(rung: LatentRung, seen: bytes, mapped: bool) -> wire.Rung:
    """`mapped`: what is seen of it comes from a linear map, so that it may be decoded some day."""
    history = None if rung.x is None else latent_bytes(rung.x0)
    estimate = half_bytes(rung.x0) if mapped else None
    return wire.Rung(rung.step, seen, latent_bytes(rung.x), history, rung.drawn, estimate)


def _decoded_thumbnail(x0: torch.Tensor, tile: bool, family: Family) -> bytes:
    return thumbnail(developed(family.decode, x0.to(family.device), tile))


def _recipe(job: Job) -> Recipe:
    assert isinstance(job.task, Recipe), "only a recipe's job has events"
    return job.task
