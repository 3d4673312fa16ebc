"""The engine: step-level continuous batching. Images of different jobs and timesteps share one forward.

Jobs join and leave between steps. It imports no files, NATS or image encoding. One thread owns it: its methods must not
run concurrently.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import cast

import torch

from engine.batching.batch import (
    BUCKETS,
    BatchLayouts,
    BatchLimits,
    EndEstimator,
    Prediction,
    choose_preview,
    predict_batch,
)
from engine.batching.fault_isolation import check_device, find_failing_jobs, run_harmless
from engine.batching.input_pictures import InitLatents
from engine.batching.job_images import amend_images, build_images
from engine.batching.pipeline_images import NOT_FINITE, PipelineBatching, PipelineImage, PipelineOutputs
from engine.batching.scheduler import JobControls, Scheduler
from engine.batching.trajectory import BatchRun, Event, JobFailure, LatentsDone, StepDone, Trajectory
from engine.contract import AmendmentRequest, Blame, Job, Recipe, Snapshot
from engine.device.memory import is_out_of_memory
from engine.models.family import Family
from engine.models.picture_conditions import PictureConditions

log = logging.getLogger(__name__)

CHECK_EVERY_STEPS = 10  # steps between checks for non-finite rows: each check waits for the device

ScheduledImage = Trajectory | PipelineImage


class Engine:
    """`rows`: the most rows of a forward (the calibrated batch limit). `families`: its models, by name.

    Calibrated, by model name: `row_ms_by_model`, milliseconds a row-step at the native size; `batch_limits`, a model's
    own limit; `forward_times`, milliseconds of a forward by rows (`engine.batching.group`).
    """

    def __init__(
        self,
        families: Mapping[str, Family],
        *,
        rows: int = 32,
        buckets: Sequence[int] = BUCKETS,
        row_ms_by_model: Mapping[str, float] = MappingProxyType({}),
        batch_limits: Mapping[str, int] = MappingProxyType({}),
        forward_times: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rows = rows
        self._families = families
        self._row_ms_by_model = dict(row_ms_by_model)
        self._forward_times = dict(forward_times)
        self._limits = BatchLimits(rows, batch_limits)  # a limit shrinks when memory runs out
        self._layouts = BatchLayouts(buckets, self._limits)
        self._scheduler: Scheduler[ScheduledImage] = Scheduler()
        self._pipeline_batching = PipelineBatching()
        self._images = dict[str, list[ScheduledImage]]()
        self._watched_jobs = set[str]()
        self._end_estimator = EndEstimator(families)
        self._controls = JobControls(self._scheduler, clock)
        self._events = list[Event]()
        self._steps = 0
        self.last_batch: BatchRun | None = None  # the last step's batch of trajectories, if any

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do now: no job is here, or all jobs are paused or wait for their pace."""
        return not (self._has_work or self._pipeline_batching.has_busy_images)

    @property
    def _has_work(self) -> bool:
        return not self._scheduler.is_idle or bool(self._events) or self._controls.seconds_until_due == 0.0

    @property
    def seconds_until_due(self) -> float | None:
        """Seconds until the next step of a job that waits for its pace; None if none waits."""
        return self._controls.seconds_until_due

    @property
    def free_rows(self) -> int:
        return max(0, self.rows - self._scheduler.active_rows)

    def add(
        self,
        job: Job,
        snapshots: Sequence[Snapshot] = (),
        init_latents: InitLatents | None = None,
        pictures: PictureConditions = (),
    ) -> None:
        """Add the job's images for the next step, each from its snapshot or else its start. Raises `JobRejected`."""
        if job.id in self._images:
            return
        images = self._images[job.id] = [
            *build_images(
                job, self._families, snapshots, self._row_ms_by_model, init_latents, self._forward_times, pictures
            )
        ]
        for image in images:
            if isinstance(image, PipelineImage):
                self._pipeline_batching.add(image)
                continue
            self._schedule(image)
            if image.is_done:  # the previous worker was lost between the last step and the picture
                self._finish_image(image)

    def cancel(self, job: str) -> int:
        """Remove the job; its rows are free at the next step. Return the number of executed steps, for the charge."""
        steps = max((image.k for image in self._images.get(job, ())), default=0)
        self._drop_job(job)
        return steps

    def watch(self, job: str, is_watched: bool = True) -> None:
        """Include x0 in the job's step events, for previews."""
        (self._watched_jobs.add if is_watched and job in self._images else self._watched_jobs.discard)(job)

    def pause(self, job: str) -> None:
        """Give the job no rows from the next step on, until it is resumed. Unknown jobs are ignored."""
        if job in self._images:
            self._controls.pause(job)

    def resume(self, job: str) -> None:
        """Continue the job at the next step; it gets no credit for the pause."""
        self._controls.resume(job)

    def set_job_pace(self, job: str, seconds: float) -> None:
        """Let the steps of a job begin at least so many seconds apart; 0: as soon as they can.

        Unknown jobs are ignored, and images of unmodified pipelines know no pace.
        """
        if job in self._images:
            self._controls.set_pace(job, seconds)

    def set_job_weight(self, job: str, weight: float) -> None:
        """Give the job `weight` times the rows of its user's jobs of weight 1. Raises ValueError outside (0, 1000]."""
        if job in self._images:
            self._controls.set_weight(job, weight)

    def amend(self, job: str, request: AmendmentRequest) -> Recipe:
        """Change a job from the next step on, and return its recipe with the amendment.

        Raises `JobRejected` with a sentence, and KeyError if the job is not here; then nothing is changed.
        """
        recipe = amend_images(self._images[job], self._families, request)
        images = list(self._images[job])
        for image in images:
            if isinstance(image, Trajectory) and image.is_dropped:
                self._remove_image(image)
        for image in self._images[job]:
            self._limits.limit_for(image)  # its rows may have another shape now
        return recipe

    def take_snapshots(self, job: str, epoch: int) -> list[Snapshot]:
        """Return a snapshot of each unfinished image that supports it. Waits for the device."""
        return [image.snapshot(epoch) for image in self._images.get(job, ()) if isinstance(image, Trajectory)]

    def close(self) -> None:
        """Remove all jobs and end their threads."""
        for job in list(self._images):
            self._drop_job(job)
        self._pipeline_batching.close()

    def set_calibration(self, model: str, row_ms: float, batch_limit: int, forward_times: Mapping[int, float]) -> None:
        """Set the model's cost of a row-step, batch limit and forward times from now on."""
        self._row_ms_by_model[model] = row_ms
        self._forward_times[model] = forward_times
        self._limits.set_model_limit(model, batch_limit)
        for image in (image for images in self._images.values() for image in images):
            self._limits.limit_for(image)  # a key without a limit would get the whole worker's rows for a step
        self.rows = max(self.rows, batch_limit)

    def wait_for_work(self) -> bool:
        """Return whether a step has anything to do now; if all images are busy, wait a moment for them."""
        return self._has_work or self._pipeline_batching.wait_for_ready()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Choose a batch, predict it in one forward and advance it. State changes only on success. [] when idle."""
        self.last_batch = None
        self._controls.resume_due_jobs()
        self._schedule_ready()
        while batch := self._scheduler.next_batch(self.rows, self._limits.limits):
            if outcome := self._try_forward(batch):
                self._advance_batch(batch, outcome)
                break
        events = self._events
        self._events = []
        return events

    def _try_forward(self, batch: list[ScheduledImage]) -> Prediction | PipelineOutputs | None:
        """Return None after a failure: the next batch will be smaller, or without the jobs at fault."""
        try:
            return self._run_forward(batch)
        except Exception as error:
            return self._halve_limit(batch) if is_out_of_memory(error) else self._fail_guilty(batch, error)

    def _run_forward(self, batch: list[ScheduledImage]) -> Prediction | PipelineOutputs:
        pipeline_images = [image for image in batch if isinstance(image, PipelineImage)]
        if pipeline_images:  # then all are, since their keys differ from trajectories'
            return self._pipeline_batching.run_forwards(pipeline_images, self._limits.limit_for(pipeline_images[0]))
        trajectories = [image for image in batch if isinstance(image, Trajectory)]
        return predict_batch(trajectories, self._layouts.layout_for(trajectories), self._families[batch[0].model])

    def _advance_batch(self, batch: list[ScheduledImage], outcome: Prediction | PipelineOutputs) -> None:
        if isinstance(outcome, PipelineOutputs):
            self._scheduler.charge(batch)
            for image in self._pipeline_batching.resume_images(outcome):
                self._scheduler.remove(image)
            for image in outcome.images:
                self._emit_events(image)
        else:
            self._advance_trajectories([image for image in batch if isinstance(image, Trajectory)], outcome)

    def _schedule_ready(self) -> None:
        """Schedule images that finished text encoding or decoding meanwhile: they wait for a forward, or have ended."""
        for image in self._pipeline_batching.collect_ready(wait=self._scheduler.is_idle and not self._events):
            if self._emit_events(image):
                self._schedule(image)

    def _emit_events(self, image: PipelineImage) -> bool:
        """Emit the image's news. Return whether it continues; otherwise it is finished, or its job has failed."""
        if image not in self._images.get(image.job, ()):  # another image of its job just failed
            return False
        events = image.collect_events(image.job in self._watched_jobs)
        if any(isinstance(event, JobFailure) for event in events):
            check_device(self._families[image.model].device)  # its thread cannot tell whether the device failed
            self._drop_job(image.job)
        elif any(isinstance(event, LatentsDone) for event in events):
            self._remove_image(image)
        self._events += events
        return all(isinstance(event, StepDone) for event in events)

    def _advance_trajectories(self, batch: list[Trajectory], prediction: Prediction) -> None:
        for image, x, x0 in zip(batch, prediction.x, prediction.x0, strict=True):
            image.advance(x, x0)
            self._limits.limit_for(image)  # its shape may change now, and a pinned one may exceed the batch limit
        is_alone = len(self._images) == 1 and batch[0].job in self._watched_jobs  # an estimate would delay other jobs
        has_estimates = is_alone and self._end_estimator.estimate(batch)
        for image, x0 in zip(batch, prediction.x0, strict=True):
            watched_x0 = choose_preview(image, x0) if image.job in self._watched_jobs else None
            self._events.append(StepDone(image.job, image.image, image.k, image.plan.steps, watched_x0))
        self._scheduler.charge(batch, self._layouts.padded_rows * batch[0].row_ms)  # padding is charged, too
        self._steps += 1
        for image, x0 in zip(batch, prediction.x0, strict=True):
            self._follow_amendments(image, x0)
        finished = [image for image in batch if image.is_done]
        is_checked = bool(finished) or self._steps % CHECK_EVERY_STEPS == 0
        self.last_batch = None if has_estimates else self._describe_batch(batch[0], is_checked)
        if is_checked:
            self._fail_non_finite(batch, prediction.x)
        for image in finished:
            self._finish_image(image)
        stepped = {image.job for image in batch} & self._images.keys()
        self._controls.keep_paces((job, min(image.k for image in self._images[job])) for job in stepped)

    def _follow_amendments(self, image: Trajectory, x0: torch.Tensor) -> None:
        """Add the images that leave this one after its step, and remove it if it is dropped."""
        images = self._images[image.job]
        for life in image.find_split_lives():
            if all(isinstance(each, Trajectory) and each.life.key != life.key for each in images):
                images.append(new_image := image.split(life, x0))
                self._schedule(new_image)
        if image.is_dropped:
            self._remove_image(image)

    def _describe_batch(self, image: Trajectory, is_checked: bool) -> BatchRun:
        is_synchronised = is_checked or self._families[image.model].device.type == "cpu"
        rows, forwards = self._layouts.forward_shape
        has_additions = bool(image.loras) or self._layouts.has_pictures
        return BatchRun(image.model, image.dtype, rows, forwards, tuple(image.x.shape), has_additions, is_synchronised)

    def _fail_non_finite(self, batch: list[Trajectory], x: torch.Tensor) -> None:
        """Fail the jobs that have rows with non-finite numbers. Waits for the device."""
        finite = cast(list[bool], x.isfinite().flatten(1).all(dim=1).tolist())
        for job in {image.job for image, is_finite in zip(batch, finite, strict=True) if not is_finite}:
            self._fail_job(job, NOT_FINITE, "model")

    def _halve_limit(self, batch: list[ScheduledImage]) -> None:
        """After out of memory: halve the batch limit for such images; if it cannot be halved, fail the job."""
        limit = self._limits.halve(batch)
        if limit is None:
            self._fail_job(batch[0].job, "This worker has not enough memory for a picture of this size.", "worker")
        else:
            log.warning("out of memory: %d rows a forward of this size from now on", limit)

    def _fail_guilty(self, batch: list[ScheduledImage], error: Exception) -> None:
        """Fail the jobs that also fail alone. Raises if the device or the model is at fault."""
        jobs = {member.job: [image for image in batch if image.job == member.job] for member in batch}
        for job in find_failing_jobs(
            jobs, error, self._run_forward, partial(run_harmless, batch[0], self._families, self._layouts)
        ):
            self._fail_job(job, "The model failed at this picture.", "model")

    def _schedule(self, image: ScheduledImage) -> None:
        """Schedule the image with what is said of its job, which may have changed while it was busy."""
        self._limits.limit_for(image)
        self._scheduler.add(image)
        self._controls.apply_to(image.job)

    def _finish_image(self, image: Trajectory) -> None:
        if image in self._images.get(image.job, ()):  # else it failed the finite check
            self._remove_image(image)
            self._events.append(LatentsDone(image.job, image.image, image.x, tuple(image.keyframes)))

    def _fail_job(self, job: str, reason: str, blame: Blame) -> None:
        self._drop_job(job)
        self._events.append(JobFailure(job, reason, blame))

    def _drop_job(self, job: str) -> None:
        for image in list(self._images.get(job, ())):
            self._remove_image(image)
        self._events = [event for event in self._events if event.job != job]

    def _remove_image(self, image: ScheduledImage) -> None:
        if isinstance(image, PipelineImage):
            self._pipeline_batching.remove(image)
        with suppress(KeyError):  # a busy image is not scheduled
            self._scheduler.remove(image)
        self._layouts.forget()
        self._images[image.job].remove(image)
        if not self._images[image.job]:
            del self._images[image.job]
            self._watched_jobs.discard(image.job)
            self._controls.forget(image.job)
