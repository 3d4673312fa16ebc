"""Engine: step-level continuous batching. Images of different jobs, each at its own timestep, share one forward pass.

Jobs join and leave between steps. Knows recipes, plans and rows; nothing of files, NATS or how pictures are encoded.
One thread owns it: none of its methods may be called while another runs.
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
CHECK_EVERY = 10  # steps between looks for non-finite rows: each look waits for the device

Image = Trajectory | Whole


class Engine:
    """`rows`: the most rows of a forward (calibration's cap). `families`: the models it may run, by name.

    As calibrated, by the model's name: `prices`, milliseconds a row-step at the native size; `caps`, where a model has
    its own; `times`, milliseconds of a forward by rows (`engine.scheduler.patience`).
    """

    def __init__(
        self, families: Mapping[str, Family], *, rows: int = 32, buckets: Sequence[int] = BUCKETS,
        prices: Mapping[str, float] = MappingProxyType({}), caps: Mapping[str, int] = MappingProxyType({}),
        times: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.rows = rows
        self._families, self._prices, self._times = families, dict(prices), dict(times)
        self._limits = Limits(rows, caps)  # a limit falls when memory runs out
        self._layouts = Layouts(buckets, self._limits)
        self._scheduler: Scheduler[Image] = Scheduler()
        self._coalescing, self._images = Coalescing(), dict[str, list[Image]]()
        self._watched, self._paused = set[str](), set[str]()  # jobs; paused ones also while all their images are away
        self._weights: dict[str, float] = {}
        self._events: list[Event] = []
        self._steps = 0
        self.ran: Ran | None = None  # in the last step, where it was one forward or more of ours

    @property
    def idle(self) -> bool:
        """Nothing is to be done until somebody asks for it: no job is here, or all that are here are paused."""
        return self._scheduler.idle and not self._events and not self._coalescing.away

    @property
    def free_rows(self) -> int:
        return max(0, self.rows - self._scheduler.rows)

    def add(self, job: Job, snapshots: Sequence[Snapshot] = (), beginning: Beginning | None = None) -> None:
        """The job's images join at the next step, each from its snapshot, else from its beginning. Raises `Unfit`."""
        if job.id in self._images:
            return
        images = self._images[job.id] = [*admit(job, self._families, snapshots, self._prices, beginning, self._times)]
        for image in images:
            if isinstance(image, Whole):
                self._coalescing.add(image)
                continue
            self._seat(image)
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

    def pause(self, job: str) -> None:
        """From the next step on it has no rows, until it is resumed; all else stays as it is. Unknown: nothing."""
        if job in self._images:
            self._paused.add(job)
            self._scheduler.pause(job)

    def resume(self, job: str) -> None:
        """It goes on at its next step, owed nothing for its absence."""
        self._paused.discard(job)
        self._scheduler.resume(job)

    def prioritise(self, job: str, weight: float) -> None:
        """Of its user's rows it gets `weight` times those of a job of weight 1. Raises ValueError: not in (0, 1000]."""
        self._scheduler.prioritise(job, weight)
        if job in self._images:
            self._weights[job] = weight

    def snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Enough to go on elsewhere, one for each unfinished image that can. Waits for the device."""
        return [image.snapshot(epoch) for image in self._images.get(job, ()) if isinstance(image, Trajectory)]

    def close(self) -> None:
        """Every job is out, and no thread of theirs is left."""
        for job in list(self._images):
            self._drop(job)
        self._coalescing.close()

    def adjust(self, model: str, price: float, cap: int, times: Mapping[int, float]) -> None:
        """From now on this is what a row-step of the model costs, and the most rows of its forwards."""
        self._prices[model], self._times[model] = price, times
        self._limits.adjust(model, cap)
        for image in (image for images in self._images.values() for image in images):
            self._limits.of(image)  # an unknown key would have the rows of the whole worker for a step
        self.rows = max(self.rows, cap)

    def wait_for_work(self) -> bool:
        """Whether a step has anything to do now; where all images are away, it waits a moment for them."""
        return not self._scheduler.idle or bool(self._events) or self._coalescing.wait()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Choose a batch, predict it in one forward, advance it; nothing changes before it succeeded. [] when idle."""
        self.ran = None
        self._take_back()
        while batch := self._scheduler.next(self.rows, self._limits.known):
            if outcome := self._predict(batch):
                self._advance(batch, outcome)
                break
        events, self._events = self._events, []
        return events

    def _predict(self, batch: list[Image]) -> Prediction | Answers | None:
        """None where it failed: the next batch will be smaller, or without the guilty."""
        try:
            return self._forward(batch)
        except Exception as error:
            return self._shrink(batch) if is_out_of_memory(error) else self._blame(batch, error)

    def _forward(self, batch: list[Image]) -> Prediction | Answers:
        wholes = [image for image in batch if isinstance(image, Whole)]
        if wholes:  # then all are: their keys are their own
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
        """Whoever read its words, or decoded, meanwhile: it waits for a forward, or has come to its end."""
        for image in self._coalescing.back(wait=self._scheduler.idle and not self._events):
            if self._report(image):
                self._seat(image)

    def _report(self, image: Whole) -> bool:
        """Tells what is new of it. Whether it goes on: else it is finished, or its job has failed."""
        if image not in self._images.get(image.job, ()):  # another image of its job has just failed
            return False
        news = image.news(image.job in self._watched)
        if any(isinstance(event, Failed) for event in news):
            check_device(self._families[image.model].device)  # its strand cannot tell whose fault it was
            self._drop(image.job)
        elif any(isinstance(event, Developed) for event in news):
            self._remove(image)
        self._events += news
        return all(isinstance(event, Stepped) for event in news)

    def _move(self, batch: list[Trajectory], prediction: Prediction) -> None:
        for image, x, x0 in zip(batch, prediction.x, prediction.x0, strict=True):
            image.move(x, x0)
            self._limits.of(image)  # it may ask for another shape now, and a pinned one is wider than the cap
            seen = x0 if image.job in self._watched else None
            self._events.append(Stepped(image.job, image.image, image.k, image.plan.steps, seen))
        self._scheduler.charge(batch, self._layouts.rows * batch[0].price)  # padding is paid for, too
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
        """A row that is not finite fails its job alone. Waits for the device."""
        finite = x.isfinite().flatten(1).all(dim=1)
        for job in {image.job for image, good in zip(batch, finite.tolist(), strict=True) if not good}:
            self._fail(job, NOT_FINITE, "model")

    def _shrink(self, batch: list[Image]) -> None:
        """Out of memory: half the rows of its like from now on; what cannot be halved fails its job."""
        limit = self._limits.halve(batch)
        if limit is None:
            self._fail(batch[0].job, "This worker has not enough memory for a picture of this size.", "worker")
        else:
            log.warning("out of memory: %d rows a forward of this size from now on", limit)

    def _blame(self, batch: list[Image], error: Exception) -> None:
        """Fails the jobs that fail by themselves. Raises where it is the device's fault, or the model's."""
        jobs = {each.job: [image for image in batch if image.job == each.job] for each in batch}
        for job in guilty(jobs, error, self._forward, partial(run_harmless, batch[0], self._families, self._layouts)):
            self._fail(job, "The model failed at this picture.", "model")

    def _seat(self, image: Image) -> None:
        """As its job stands: who was away comes back to a pause, and to its weight."""
        self._limits.of(image)
        self._scheduler.add(image)
        if image.job in self._weights:
            self._scheduler.prioritise(image.job, self._weights[image.job])
        if image.job in self._paused:
            self._scheduler.pause(image.job)

    def _finish(self, image: Trajectory) -> None:
        if image in self._images.get(image.job, ()):  # else it failed the check
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
        with suppress(KeyError):  # who is away has no seat
            self._scheduler.remove(image)
        self._images[image.job].remove(image)
        if not self._images[image.job]:
            del self._images[image.job]
            self._watched.discard(image.job)
            self._paused.discard(image.job)
            self._weights.pop(image.job, None)
