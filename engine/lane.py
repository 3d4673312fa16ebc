"""The decode lane: turns the engine's events into frames, pictures and ladders, in a thread of its own.

On a processor decodes and steps take turns, each with all cores (`engine.cores`); on a card they run side by side. One
thing is decoded at a time: finished pictures first, then frames, then rungs as they pass, so little is left after the
last step. Pictures and ladders are a function of recipe and latents alone.
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
from weakref import WeakKeyDictionary

import torch
from PIL.Image import Image

from engine import job as wire
from engine.admit import check
from engine.beginning import Beginning, read, whole
from engine.blame import unforeseen
from engine.cores import Cores, Kind
from engine.encode import jpeg, latent_bytes, parameters, png, webp
from engine.engine import Developed, Stepped
from engine.families.family import Family
from engine.finishing import developed, laid_over
from engine.job import Frame, Job, Ladder, Recipe, Verdict
from engine.picture_check import PictureCheck, Verdicts
from engine.preview import Previewer
from engine.trajectory import LatentRung
from engine.unfit import Unfit

log = logging.getLogger(__name__)

PICTURE, FRAME, RUNG, CLOSE = range(4)
T = TypeVar("T")


class Lane:
    """Every method returns at once; what it promises comes in a `concurrent.futures.Future` (`asyncio.wrap_future`)."""

    def __init__(
        self, families: Mapping[str, Family], check: PictureCheck | None = None, cores: Cores | None = None
    ) -> None:
        self._families, self.cores = families, cores or Cores()
        self.checks = check is not None
        self._verdicts = Verdicts(check)  # the lane's thread's
        self._previewers: WeakKeyDictionary[Family, Previewer] = WeakKeyDictionary()  # a model may be dropped
        self._queue: PriorityQueue[tuple[int, int, Callable[[], None]]] = PriorityQueue()
        self._order = itertools.count()
        self._under: dict[str, Beginning] = {}  # of the job; the lane's thread's
        self._thumbnails: dict[str, dict[tuple[int, int], bytes]] = {}  # the lane's thread's; the rest is the caller's
        self._frames: dict[tuple[str, int], Future[Frame]] = {}
        self._passing: dict[str, list[Future[bytes]]] = {}
        self._thread = threading.Thread(target=self._run, args=(torch.get_num_threads(),), name="lane", daemon=True)
        self._thread.start()

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

    def rung(self, event: Stepped, job: Job) -> None:
        """Decode a rung's thumbnail as it passes, when nothing better is to do. Call it for every event with `rung`."""
        x0 = event.x0
        if x0 is not None:
            future = self._submit(RUNG, lambda: self._thumbnail(job, event.image, event.k, x0))
            self._passing.setdefault(job.id, []).append(future)

    def picture(self, event: Developed, job: Job) -> Future[bytes]:
        """The finished PNG: the same bytes for the same recipe and latents."""
        return self._submit(PICTURE, lambda: self._picture(event, job))

    def verdict(self, content: bytes, job: Job) -> Future[Verdict]:
        """What the picture check says of a finished picture; "unchecked" where the job does not ask, or it failed."""
        return self._submit(PICTURE, lambda: self._verdict(job, content))

    def ladder(self, event: Developed, job: Job) -> Future[bytes]:
        """The encoded `Ladder`; what was not decoded in passing is decoded now."""
        return self._submit(RUNG, lambda: self._ladder(event, job))

    def forget(self, job: str) -> None:
        """The job has left: whatever still waits for it is cancelled, and its thumbnails are dropped."""
        for future in self._passing.pop(job, ()):
            future.cancel()
        for key in [key for key in self._frames if key[0] == job]:
            self._frames.pop(key).cancel()
        self._submit(PICTURE, lambda: self._under.pop(job, None))  # in turn, should it come once more
        self._submit(RUNG, lambda: self._drop(job))

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

    def _verdict(self, job: Job, content: bytes) -> Verdict:
        with self.cores.held(Kind.PICTURE):
            return self._verdicts.final(job, content)

    def _drop(self, job: str) -> None:
        self._thumbnails.pop(job, None)
        self._verdicts.forget(job)

    def _frame(self, event: Stepped, job: Job, epoch: int, seconds_left: float) -> Frame:
        x0, recipe = event.x0, _recipe(job)
        assert x0 is not None, "only a watched job's steps carry x0"
        with self.cores.held(Kind.OTHER):
            verdict = self._verdicts.early(
                job, event.image, event.k / event.of, lambda: self._families[recipe.model].decode(x0)
            )
        picture = self._preview(x0, recipe)
        return Frame(
            job=event.job, image=event.image, epoch=epoch, step=event.k, of=event.of,
            picture=jpeg(picture), seconds_left=max(0.0, seconds_left), verdict=verdict,
        )  # fmt: skip

    def _preview(self, x0: torch.Tensor, recipe: Recipe) -> Image:
        previewer = self._previewer(recipe.model)
        with self.cores.held(Kind.OTHER):
            return developed(previewer.picture, x0, recipe.tile)

    def _previewer(self, model: str) -> Previewer:
        """That of the model as it is in memory now."""
        family = self._families[model]
        if family not in self._previewers:
            self._previewers[family] = Previewer(family)
        return self._previewers[family]

    def _picture(self, event: Developed, job: Job) -> bytes:
        recipe = _recipe(job)
        family = self._families[recipe.model]
        with self.cores.held(Kind.PICTURE):
            picture = developed(family.finish, event.latents, recipe.tile)
        picture = laid_over(picture, self._under.get(job.id))
        factor = picture.width // recipe.width
        return png(picture, parameters(recipe, event.image, family.revision, factor, family.upscaler))

    def _thumbnail(self, job: Job, image: int, step: int, x0: torch.Tensor) -> bytes:
        known = self._thumbnails.setdefault(job.id, {})
        if (image, step) not in known:
            recipe = _recipe(job)
            known[image, step] = webp(self._preview(x0, recipe))
        return known[image, step]

    def _ladder(self, event: Developed, job: Job) -> bytes:
        rungs = tuple(self._wired(event, job, rung) for rung in event.rungs)
        of, shape = _recipe(job).steps, tuple(event.latents.shape)
        return wire.encode(Ladder(job=event.job, image=event.image, of=of, shape=shape, rungs=rungs))

    def _wired(self, event: Developed, job: Job, rung: LatentRung) -> wire.Rung:
        thumbnail = self._thumbnail(job, event.image, rung.step, rung.x0)
        estimate = None if rung.x is None else latent_bytes(rung.x0)
        return wire.Rung(rung.step, thumbnail, latent_bytes(rung.x), estimate, rung.drawn)


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


def _recipe(job: Job) -> Recipe:
    assert isinstance(job.task, Recipe), "only a recipe's job has events"
    return job.task
