"""The engine: step-level continuous batching. Images of different jobs and timesteps share one forward.

Jobs join and leave between steps. It imports no files, NATS or image encoding. One thread owns it: its methods must not
run concurrently.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType

import torch

from engine.admit import admit
from engine.beginning import Beginning
from engine.blame import check_device, guilty, run_harmless
from engine.coalescing import Answers, Coalescing
from engine.events import Developed, Event, Failed, Ran, Stepped
from engine.families.family import Family
from engine.job import Blame, Job, Snapshot
from engine.layouts import Layouts
from engine.limits import Limits
from engine.memory import is_out_of_memory
from engine.rows import Coefficients, Prediction, predict, turned
from engine.scheduler import Scheduler
from engine.trajectory import Trajectory
from engine.whole import NOT_FINITE, Whole

log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 32)
CHECK_EVERY = 10  # steps between checks for non-finite rows: each check waits for the device

Image = Trajectory | Whole


class Engine:
    """`rows`: the most rows of a forward (the calibrated batch limit). `families`: its models, by name.

    Calibrated, by model name: `prices`, milliseconds a row-step at the native size; `caps`, a model's own batch limit;
    `times`, milliseconds of a forward by rows (`engine.scheduler.patience`).
    """

    def __init__(
        self, families: Mapping[str, Family], *, rows: int = 32, buckets: Sequence[int] = BUCKETS,
        prices: Mapping[str, float] = MappingProxyType({}), caps: Mapping[str, int] = MappingProxyType({}),
        times: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.rows = rows
        self._families, self._prices, self._times = families, dict(prices), dict(times)
        self._limits = Limits(rows, caps)  # a limit shrinks when memory runs out
        self._layouts = Layouts(buckets, self._limits)
        self._scheduler: Scheduler[Image] = Scheduler()
        self._coalescing, self._images = Coalescing(), dict[str, list[Image]]()
        self._watched, self._paused = set[str](), set[str]()  # jobs; paused ones also while all images are away
        self._weights: dict[str, float] = {}
        self._events: list[Event] = []
        self._steps = 0
        self.ran: Ran | None = None  # the last step's batch of trajectories, if any

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: no job is here, or all jobs are paused."""
        return self._scheduler.idle and not self._events and not self._coalescing.away

    @property
    def free_rows(self) -> int:
        return max(0, self.rows - self._scheduler.rows)

    def add(self, job: Job, snapshots: Sequence[Snapshot] = (), beginning: Beginning | None = None) -> None:
        """Add the job's images for the next step, each from its snapshot or else its start. Raises `Unfit`."""
        if job.id in self._images:
            return
        images = self._images[job.id] = [*admit(job, self._families, snapshots, self._prices, beginning, self._times)]
        for image in images:
            if isinstance(image, Whole):
                self._coalescing.add(image)
                continue
            self._seat(image)
            if image.done:  # the previous worker was lost between the last step and the picture
                self._finish(image)

    def cancel(self, job: str) -> int:
        """Remove the job; its rows are free at the next step. Return the number of executed steps, for the charge."""
        steps = max((image.k for image in self._images.get(job, ())), default=0)
        self._drop(job)
        return steps

    def watch(self, job: str, on: bool = True) -> None:
        """Include x0 in the job's step events, for previews."""
        (self._watched.add if on and job in self._images else self._watched.discard)(job)

    def pause(self, job: str) -> None:
        """Give the job no rows from the next step on, until it is resumed. Unknown jobs are ignored."""
        if job in self._images:
            self._paused.add(job)
            self._scheduler.pause(job)

    def resume(self, job: str) -> None:
        """Continue the job at the next step; it gets no credit for the pause."""
        self._paused.discard(job)
        self._scheduler.resume(job)

    def prioritise(self, job: str, weight: float) -> None:
        """Give the job `weight` times the rows of its user's jobs of weight 1. Raises ValueError outside (0, 1000]."""
        self._scheduler.prioritise(job, weight)
        if job in self._images:
            self._weights[job] = weight

    def snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Return a snapshot of each unfinished image that supports it. Waits for the device."""
        return [image.snapshot(epoch) for image in self._images.get(job, ()) if isinstance(image, Trajectory)]

    def close(self) -> None:
        """Remove all jobs and end their threads."""
        for job in list(self._images):
            self._drop(job)
        self._coalescing.close()

    def adjust(self, model: str, price: float, cap: int, times: Mapping[int, float]) -> None:
        """Set the model's cost of a row-step, batch limit and forward times from now on."""
        self._prices[model], self._times[model] = price, times
        self._limits.adjust(model, cap)
        for image in (image for images in self._images.values() for image in images):
            self._limits.of(image)  # a key without a limit would get the whole worker's rows for a step
        self.rows = max(self.rows, cap)

    def wait_for_work(self) -> bool:
        """Return whether a step has anything to do now; if all images are away, wait a moment for them."""
        return not self._scheduler.idle or bool(self._events) or self._coalescing.wait()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Choose a batch, predict it in one forward and advance it. State changes only on success. [] when idle."""
        self.ran = None
        self._take_back()
        while batch := self._scheduler.next(self.rows, self._limits.known):
            if outcome := self._predict(batch):
                self._advance(batch, outcome)
                break
        events, self._events = self._events, []
        return events

    def _predict(self, batch: list[Image]) -> Prediction | Answers | None:
        """Return None after a failure: the next batch will be smaller, or without the jobs at fault."""
        try:
            return self._forward(batch)
        except Exception as error:
            return self._shrink(batch) if is_out_of_memory(error) else self._blame(batch, error)

    def _forward(self, batch: list[Image]) -> Prediction | Answers:
        wholes = [image for image in batch if isinstance(image, Whole)]
        if wholes:  # then all are, since their keys differ from trajectories'
            return self._coalescing.forward(wholes, self._limits.of(wholes[0]))
        return self._forward_rows([image for image in batch if isinstance(image, Trajectory)])

    def _forward_rows(self, batch: list[Trajectory]) -> Prediction:
        at, now, layout = Coefficients.of(batch), torch.stack([image.x for image in batch]), self._layouts.of(batch)
        inputs, times = turned(at["c"] * now, batch)[layout.owner], at["t"].flatten()[layout.owner]
        family, dtype, loras = self._families[batch[0].model], batch[0].dtype, batch[0].loras
        rows = zip(inputs.split(layout.size), times.split(layout.size), layout.told, strict=True)
        out = torch.cat([family.denoise(x, t, texts, dtype, loras) for x, t, texts in rows])
        return predict(batch, now, turned(layout.guide(out), batch, -1), at)

    def _advance(self, batch: list[Image], outcome: Prediction | Answers) -> None:
        if isinstance(outcome, Answers):
            self._scheduler.charge(batch)
            for image in self._coalescing.answer(outcome):
                self._scheduler.remove(image)
            for image in outcome.images:
                self._report(image)
        else:
            self._move([image for image in batch if isinstance(image, Trajectory)], outcome)

    def _take_back(self) -> None:
        """Schedule images that finished text encoding or decoding meanwhile: they wait for a forward, or have ended."""
        for image in self._coalescing.back(wait=self._scheduler.idle and not self._events):
            if self._report(image):
                self._seat(image)

    def _report(self, image: Whole) -> bool:
        """Emit the image's news. Return whether it continues; otherwise it is finished, or its job has failed."""
        if image not in self._images.get(image.job, ()):  # another image of its job just failed
            return False
        news = image.news(image.job in self._watched)
        if any(isinstance(event, Failed) for event in news):
            check_device(self._families[image.model].device)  # its thread cannot tell whether the device failed
            self._drop(image.job)
        elif any(isinstance(event, Developed) for event in news):
            self._remove(image)
        self._events += news
        return all(isinstance(event, Stepped) for event in news)

    def _move(self, batch: list[Trajectory], prediction: Prediction) -> None:
        for image, x, x0 in zip(batch, prediction.x, prediction.x0, strict=True):
            image.move(x, x0)
            self._limits.of(image)  # its shape may change now, and a pinned one may exceed the batch limit
            seen = x0 if image.job in self._watched else None
            self._events.append(Stepped(image.job, image.image, image.k, image.plan.steps, seen))
        self._scheduler.charge(batch, self._layouts.rows * batch[0].price)  # padding is charged, too
        self._steps += 1
        done = [image for image in batch if image.done]
        looked = bool(done) or self._steps % CHECK_EVERY == 0
        self.ran = self._said(batch[0], looked)
        if looked:
            self._check(batch, prediction.x)
        for image in done:
            self._finish(image)

    def _said(self, image: Trajectory, looked: bool) -> Ran:
        waited = looked or self._families[image.model].device.type == "cpu"
        rows, forwards = self._layouts.last
        return Ran(image.model, image.dtype, rows, forwards, tuple(image.x.shape), bool(image.loras), waited)

    def _check(self, batch: list[Trajectory], x: torch.Tensor) -> None:
        """Fail the jobs that have rows with non-finite numbers. Waits for the device."""
        finite = x.isfinite().flatten(1).all(dim=1)
        for job in {image.job for image, good in zip(batch, finite.tolist(), strict=True) if not good}:
            self._fail(job, NOT_FINITE, "model")

    def _shrink(self, batch: list[Image]) -> None:
        """After out of memory: halve the batch limit for such images; if it cannot be halved, fail the job."""
        limit = self._limits.halve(batch)
        if limit is None:
            self._fail(batch[0].job, "This worker has not enough memory for a picture of this size.", "worker")
        else:
            log.warning("out of memory: %d rows a forward of this size from now on", limit)

    def _blame(self, batch: list[Image], error: Exception) -> None:
        """Fail the jobs that also fail alone. Raises if the device or the model is at fault."""
        jobs = {each.job: [image for image in batch if image.job == each.job] for each in batch}
        for job in guilty(jobs, error, self._forward, partial(run_harmless, batch[0], self._families, self._layouts)):
            self._fail(job, "The model failed at this picture.", "model")

    def _seat(self, image: Image) -> None:
        """Schedule the image with its job's pause and weight, which may have changed while it was away."""
        self._limits.of(image)
        self._scheduler.add(image)
        if image.job in self._weights:
            self._scheduler.prioritise(image.job, self._weights[image.job])
        if image.job in self._paused:
            self._scheduler.pause(image.job)

    def _finish(self, image: Trajectory) -> None:
        if image in self._images.get(image.job, ()):  # else it failed the finite check
            self._remove(image)
            self._events.append(Developed(image.job, image.image, image.x, tuple(image.rungs)))

    def _fail(self, job: str, reason: str, blame: Blame) -> None:
        self._drop(job)
        self._events.append(Failed(job, reason, blame))

    def _drop(self, job: str) -> None:
        for image in list(self._images.get(job, ())):
            self._remove(image)
        self._events = [event for event in self._events if event.job != job]

    def _remove(self, image: Image) -> None:
        if isinstance(image, Whole):
            self._coalescing.remove(image)
        with suppress(KeyError):  # an away image is not scheduled
            self._scheduler.remove(image)
        self._images[image.job].remove(image)
        if not self._images[image.job]:
            del self._images[image.job]
            self._watched.discard(image.job)
            self._paused.discard(image.job)
            self._weights.pop(image.job, None)
