"""Engine: step-level continuous batching. Images of different jobs, each at its own timestep, share one forward pass.

Jobs join and leave between steps. The engine knows recipes, plans and rows; it knows nothing of time, files, NATS or
how pictures are encoded. One thread owns it: none of its methods may be called while another runs.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.admit import admit
from engine.families.family import Family
from engine.job import Blame, Job, Snapshot
from engine.memory import is_out_of_memory
from engine.rows import Coefficients, Layout, Prediction, predict
from engine.scheduler import Scheduler
from engine.trajectory import Asked, LatentRung, Trajectory

log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 32)
CHECK_EVERY = 10  # steps between looks for non-finite rows: each look waits for the device
MOST_LIMITS = 1000


@dataclass(frozen=True)
class Stepped:
    """Image `image` has done `k` of `of` steps. `x0` is there where the job is watched or the step is a `rung`."""

    job: str
    image: int
    k: int
    of: int
    x0: torch.Tensor | None = None
    rung: bool = False


@dataclass(frozen=True)
class Developed:
    """The image's latents are finished; what remains is to decode them."""

    job: str
    image: int
    latents: torch.Tensor
    rungs: tuple[LatentRung, ...]


@dataclass(frozen=True)
class Failed:
    """The job is out of the engine, with all of its images."""

    job: str
    reason: str
    blame: Blame


Event = Stepped | Developed | Failed


class Engine:
    """`rows`: the most rows of a forward (calibration's cap). `families`: the models it may run, by name."""

    def __init__(self, families: Mapping[str, Family], *, rows: int = 32, buckets: Sequence[int] = BUCKETS) -> None:
        self.rows = rows
        self._families, self._buckets = families, tuple(sorted(buckets))
        self._limits: dict[Hashable, int] = {}  # rows a batch, by its key: a limit falls when memory runs out
        self._scheduler: Scheduler[Trajectory] = Scheduler()
        self._images: dict[str, list[Trajectory]] = {}
        self._watched: set[str] = set()
        self._events: list[Event] = []
        self._layout: tuple[list[Asked], Layout] | None = None
        self._steps = 0

    @property
    def idle(self) -> bool:
        return not self._images and not self._events

    @property
    def free_rows(self) -> int:
        return max(0, self.rows - self._scheduler.rows)

    def add(self, job: Job, snapshots: Sequence[Snapshot] = ()) -> None:
        """The job's images join at the next step, each from its snapshot where there is one. Raises `Unfit`."""
        if job.id in self._images:
            return
        images = admit(job, self._families)
        for image in images:
            _restore(image, snapshots)
        self._images[job.id] = images
        self._limit(images[0])
        for image in images:
            self._scheduler.add(image)
            if image.done:  # the worker before us was lost between the last step and the picture
                self._finish(image)

    def cancel(self, job: str) -> int:
        """Out it goes; its rows are free at the next step. Returns the steps that were run, for the charge."""
        steps = max((image.k for image in self._images.get(job, ())), default=0)
        self._drop(job)
        return steps

    def watch(self, job: str, on: bool = True) -> None:
        """Somebody looks at this job: its steps come with x0."""
        (self._watched.add if on and job in self._images else self._watched.discard)(job)

    def snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Enough to go on elsewhere, one for each unfinished image. Waits for the device."""
        return [image.snapshot(epoch) for image in self._images.get(job, ())]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Choose a batch, predict it in one forward, advance it; nothing changes before it succeeded. [] when idle."""
        while batch := self._scheduler.next(self.rows, self._limits):
            if prediction := self._predict(batch):
                self._advance(batch, prediction)
                break
        return self._flush()

    def _predict(self, batch: list[Trajectory]) -> Prediction | None:
        """None where it failed: the next batch will be smaller, or without the guilty."""
        try:
            return self._forward(batch)
        except Exception as error:
            return self._shrink(batch) if is_out_of_memory(error) else self._blame(batch, error)

    def _forward(self, batch: list[Trajectory]) -> Prediction:
        at, now, layout = Coefficients.of(batch), torch.stack([image.x for image in batch]), self._lay(batch)
        inputs, times = (at["c"] * now)[layout.owner], at["t"].flatten()[layout.owner]
        family, dtype = self._families[batch[0].model], batch[0].dtype
        rows = [each.split(layout.size) for each in (inputs, times, *layout.texts)]
        loras = batch[0].loras
        out = torch.cat([family.denoise(x, t, tuple(texts), dtype, loras) for x, t, *texts in zip(*rows, strict=True)])
        return predict(batch, now, layout.guide(out), at)

    def _advance(self, batch: list[Trajectory], prediction: Prediction) -> None:
        for image, x, x0 in zip(batch, prediction.x, prediction.x0, strict=True):
            rung = image.move(x, x0)
            seen = x0 if rung or image.job in self._watched else None
            self._events.append(Stepped(image.job, image.image, image.k, image.plan.steps, seen, rung))
        self._scheduler.charge(batch)
        self._steps += 1
        done = [image for image in batch if image.done]
        if done or self._steps % CHECK_EVERY == 0:
            self._check(batch, prediction.x)
        for image in done:
            self._finish(image)

    def _check(self, batch: list[Trajectory], x: torch.Tensor) -> None:
        """A row that is not finite fails its job alone. Waits for the device."""
        finite = x.isfinite().flatten(1).all(dim=1).tolist()
        for job in {image.job for image, good in zip(batch, finite, strict=True) if not good}:
            self._fail(job, "The picture came out as numbers that are not finite; another seed may work.", "model")

    def _shrink(self, batch: list[Trajectory]) -> None:
        """Out of memory: half the rows of its like from now on; what cannot be halved fails its job."""
        limit = self._limit(batch[0])
        if batch[0].bucket is not None or limit == 1:
            self._fail(batch[0].job, "This worker has not enough memory for a picture of this size.", "worker")
            return
        self._limits[batch[0].key] = max(1, min(limit, sum(image.rows for image in batch)) // 2)
        log.warning("out of memory: %d rows a forward of this size from now on", self._limits[batch[0].key])

    def _blame(self, batch: list[Trajectory], error: Exception) -> None:
        """Fails the jobs that fail alone too. Raises where all do (the device is broken, or the model), or none."""
        jobs = {job: [image for image in batch if image.job == job] for job in sorted({each.job for each in batch})}
        guilty = [job for job, images in jobs.items() if len(jobs) > 1 and self._fails(images)]
        if not 0 < len(guilty) < len(jobs):
            raise error
        for job in guilty:
            self._fail(job, "The model failed at this picture.", "model")

    def _fails(self, images: list[Trajectory]) -> bool:
        try:
            self._forward(images)
        except Exception:
            log.exception("job %s fails by itself", images[0].job)
            return True
        return False

    def _limit(self, image: Trajectory) -> int:
        """Rows of a batch of its like. A pinned forward costs its whole bucket, so a batch may fill that."""
        if image.key not in self._limits and len(self._limits) >= MOST_LIMITS:
            self._limits.clear()
        return self._limits.setdefault(image.key, max(self.rows, image.bucket or 0))

    def _lay(self, batch: list[Trajectory]) -> Layout:
        """The batch's layout, the last one's where nobody joined, left or changed what it asks for."""
        size, asked = self._size(batch), [image.asked for image in batch]
        known = self._layout
        if known is None or known[1].size != size or not _same(known[0], asked):
            self._layout = known = (asked, Layout.of(batch, size))
        return known[1]

    def _size(self, batch: list[Trajectory]) -> int:
        """Rows of a forward: what the recipe pins, or the next bucket, so that compiled shapes stay few."""
        rows = min(sum(image.rows for image in batch), self._limit(batch[0]))
        return batch[0].bucket or next((size for size in self._buckets if size >= rows), rows)

    def _finish(self, image: Trajectory) -> None:
        if image not in self._images.get(image.job, ()):
            return  # it failed the check
        self._remove(image)
        self._events.append(Developed(image.job, image.image, image.x, tuple(image.rungs)))

    def _fail(self, job: str, reason: str, blame: Blame) -> None:
        self._drop(job)
        self._events.append(Failed(job, reason, blame))

    def _drop(self, job: str) -> None:
        for image in list(self._images.get(job, ())):
            self._remove(image)
        self._events = [event for event in self._events if event.job != job]

    def _remove(self, image: Trajectory) -> None:
        self._scheduler.remove(image)
        self._images[image.job].remove(image)
        if not self._images[image.job]:
            del self._images[image.job]
            self._watched.discard(image.job)

    def _flush(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _same(some: Sequence[Asked], others: Sequence[Asked]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _restore(image: Trajectory, snapshots: Sequence[Snapshot]) -> None:
    for snapshot in snapshots:
        if snapshot.image == image.image:
            try:
                image.restore(snapshot)
            except ValueError as error:
                log.warning("job %s image %d starts over: %s", image.job, image.image, error)
