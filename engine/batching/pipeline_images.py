"""`PipelineImage`: one image that runs through an unmodified pipeline in its own thread. Only its forwards are batched.

The scheduler treats its steps like those of trajectories. It has no state to snapshot, so it cannot move to another
worker midway.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from fractions import Fraction
from threading import Thread
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.batching.trajectory import Event, JobFailure, LatentKeyframe, LatentsDone, StepDone
from engine.contract import MAX_KEYFRAMES, Blame, Dtype, Job, JobRejected, Lora, Recipe, count_rows
from engine.device.memory import is_out_of_memory
from engine.models.family import EncodesPrompts, TakesLoras
from engine.pipelines.forward_batcher import CoroutineThread, ForwardBatcher, Message, ThreadEnd
from engine.pipelines.network_call import NetworkCall, NetworkForward, SamplerProgress, clone_pipeline, make_arguments

log = logging.getLogger(__name__)

CHECK_EVERY_EVALUATIONS = 10  # evaluations between checks for non-finite numbers: each check waits for the device
NOT_FINITE = "The picture came out as numbers that are not finite; another seed may work."


@runtime_checkable
class PipelineSource(Protocol):
    """What a family provides for images that run through its whole pipeline."""

    name: str
    pipeline: Any
    output_type: str  # the pipeline's output: "latent", or "pil" if only the pipeline can decode its latents
    no_guidance: float  # the pipeline's value for our guidance of 1
    pipeline_lock: AbstractContextManager[Any]  # lock on the pipeline's tokenizers and autoencoder

    def make_scheduler(self, sampler: str) -> Any:
        """Return the scheduler for the pipeline. Raises ValueError with a sentence."""
        ...

    def make_forward(self, attribute: str, net: Any, dtype: Dtype, loras: tuple[Lora, ...]) -> NetworkForward:
        """Return the forward that replaces the pipeline's part `net` of this name."""
        ...

    def extract_latents(self, output: Any, width: int, height: int) -> torch.Tensor:
        """Return the pipeline's only picture, or its latents, as the family's `finish` takes them.

        They are `[channels, height, width]`.
        """
        ...

    def to_preview_latents(self, x0: torch.Tensor, width: int, height: int) -> torch.Tensor | None:
        """Return a sampler's x0 as the family's `decode` takes it, or None if it cannot be shown."""
        ...

    def final_to_preview_latents(self, finished: torch.Tensor) -> torch.Tensor:
        """Return the finished latents as the family's `decode` takes them."""
        ...


class NonFiniteOutput(ArithmeticError):
    """The sampler returned numbers that are not finite."""


class PipelineImage:
    """Image `image` of `job`. `rows`: of its next forward, or its usual number until that is known.

    `row_ms` (milliseconds a row-step at its size) and `forward_times` (of a forward, by rows) are calibrated. Raises
    ValueError with a sentence if the model does not support the sampler.
    """

    row_ms = 1.0
    forward_times: Mapping[int, float] = MappingProxyType({})

    def __init__(self, job: Job, recipe: Recipe, image: int, source: PipelineSource) -> None:
        self.job = job.id
        self.image = image
        self.billing_key = job.billing_key
        self.model = source.name
        self.bucket = recipe.bucket
        self.steps = recipe.steps
        self.k = 0
        size = (recipe.width, recipe.height)
        self.key: Hashable = ("whole", source.name, recipe.dtype, recipe.loras, size, recipe.bucket)
        self.keyframes: list[LatentKeyframe] = []
        self._keyframe_steps = _keyframe_steps_for(recipe.steps) if job.ladder else frozenset[int]()
        self._source = source
        self._recipe = recipe
        self._usual_rows = count_rows(recipe) // recipe.drawn_count
        self._progress_by_sampler: dict[int, Fraction] = {}  # by sampler identity; its thread writes these two
        self._x0: torch.Tensor | None = None
        self._final_latents: torch.Tensor | None = None  # the finished latents for `decode`; its thread writes them too
        self._lock_stack = ExitStack()
        self._prompt_arguments = source.encode_prompt_arguments(recipe) if isinstance(source, EncodesPrompts) else {}
        pipeline = source.pipeline
        if recipe.loras and isinstance(source, TakesLoras):
            pipeline = source.make_lora_pipeline(recipe)
        self._pipeline_clone = clone_pipeline(
            pipeline,
            self._request_forward,
            self._on_scheduler_step,
            self._make_forward,
            source.make_scheduler(recipe.sampler),
        )
        self._sampler_count = sum(
            isinstance(part, SchedulerMixin) for part in cast(dict[str, Any], vars(self._pipeline_clone)).values()
        )
        self.pipeline_thread: CoroutineThread[NetworkCall, Any, torch.Tensor] = CoroutineThread(
            self._run_pipeline, f"pipeline {job.id} {image}"
        )

    @property
    def rows(self) -> int:
        call = self.pending_call
        return self._usual_rows if call is None else call.rows

    @property
    def is_done(self) -> bool:
        return False  # the thread reports its end, not a step count

    @property
    def pending_call(self) -> NetworkCall | None:
        """The forward that it waits for, if any."""
        state = self.pipeline_thread.poll(0) if self.pipeline_thread.is_started else None
        return state.content if isinstance(state, Message) else None

    @property
    def outcome(self) -> ThreadEnd[torch.Tensor] | None:
        state = self.pipeline_thread.poll(0) if self.pipeline_thread.is_started else None
        return state if isinstance(state, ThreadEnd) else None

    def collect_events(self, is_watched: bool) -> list[Event]:
        """Return the events since the last call: a step, its end. Any error here fails its job."""
        outcome = self.outcome  # read first: an ended thread has reported all of its steps
        try:
            if outcome is not None and outcome.result is None:
                return [JobFailure(self.job, *_failure_reason(self.job, outcome.error))]
            return [
                *self._step_events(is_watched),
                *(self._final_events(outcome.result) if outcome and outcome.result is not None else ()),
            ]
        except Exception as error:
            return [JobFailure(self.job, *_failure_reason(self.job, error))]

    def _step_events(self, is_watched: bool) -> list[Event]:
        """Return a step event if it has done a further step; with x0 if `is_watched`."""
        steps_done = int(self.steps * sum(self._progress_by_sampler.values()) / self._sampler_count)
        previous_step = self.k
        if steps_done <= previous_step:
            return []
        self.k, x0 = steps_done, self._x0
        is_keyframe = any(previous_step < step <= steps_done for step in self._keyframe_steps)
        needs_preview = x0 is not None and (is_keyframe or is_watched)
        preview_latents = (
            self._source.to_preview_latents(x0, self._recipe.width, self._recipe.height)
            if needs_preview and x0 is not None
            else None
        )
        if is_keyframe and preview_latents is not None:
            self.keyframes.append(LatentKeyframe(steps_done, preview_latents.clone()))
        return [StepDone(self.job, self.image, steps_done, self.steps, preview_latents if is_watched else None)]

    def _final_events(self, finished: torch.Tensor) -> list[Event]:
        """Return its last events. A ladder needs a keyframe: if the sampler showed no x0, use the finished latents."""
        if self._final_latents is not None and not self.keyframes:
            self.keyframes.append(LatentKeyframe(self.steps, self._final_latents))
        last_step_events = [StepDone(self.job, self.image, self.steps, self.steps)] if self.k < self.steps else []
        self.k = self.steps
        return [*last_step_events, LatentsDone(self.job, self.image, finished, tuple(self.keyframes))]

    def _run_pipeline(self, thread: CoroutineThread[NetworkCall, Any, torch.Tensor]) -> torch.Tensor:
        """Run the pipeline; this is all of the thread's work."""
        source = self._source
        with torch.no_grad(), self._lock_stack:
            self._acquire_pipeline()
            call_arguments = make_arguments(
                self._pipeline_clone, self._recipe, self.image, source.output_type, source.no_guidance
            )
            output = self._pipeline_clone(**(call_arguments | self._prompt_arguments))
            finished = source.extract_latents(output.images, self._recipe.width, self._recipe.height)
            self._final_latents = self._final_preview(finished) if self._keyframe_steps and not self.keyframes else None
            return finished

    def _final_preview(self, finished: torch.Tensor) -> torch.Tensor:
        """Return the last keyframe's latents. It runs in the thread, since it may be a forward of the autoencoder."""
        size = (self._recipe.width, self._recipe.height)
        x0 = self._x0
        preview_latents = None if x0 is None else self._source.to_preview_latents(x0, *size)
        if preview_latents is not None:
            return preview_latents
        self._acquire_pipeline()
        return self._source.final_to_preview_latents(finished)

    def _acquire_pipeline(self) -> None:
        """In the thread: hold the pipeline's lock up to the next forward.

        Tokenizers are reconfigured per text (padding, truncation), and some autoencoders cache their last input. Two
        threads in them at once gave a wrong picture in one of twelve runs.
        """
        self._lock_stack.close()
        self._lock_stack.enter_context(self._source.pipeline_lock)
        self.pipeline_thread.raise_if_closed()

    def _request_forward(self, call: NetworkCall) -> Any:
        self._lock_stack.close()
        return self.pipeline_thread.ask(call)

    def _make_forward(self, attribute: str, net: Any) -> NetworkForward:
        return self._source.make_forward(attribute, net, self._recipe.dtype, self._recipe.loras)

    def _on_scheduler_step(self, scheduler_step: SamplerProgress) -> None:
        """In the thread, after each evaluation. After a sampler's last one, the engine need not wait for it."""
        self.pipeline_thread.raise_if_closed()
        is_last = scheduler_step.step >= scheduler_step.total_steps
        if (is_last or scheduler_step.step % CHECK_EVERY_EVALUATIONS == 0) and not bool(
            scheduler_step.sample.isfinite().all()
        ):
            raise NonFiniteOutput
        self._x0 = scheduler_step.x0
        self._progress_by_sampler = {
            **self._progress_by_sampler,
            scheduler_step.sampler: min(Fraction(1), Fraction(scheduler_step.step, max(1, scheduler_step.total_steps))),
        }
        if is_last:
            self.pipeline_thread.release_owner()
            self._acquire_pipeline()


def _keyframe_steps_for(steps: int) -> frozenset[int]:
    """Return the keyframe steps, evenly spaced: the change per step of these samplers is not known beforehand."""
    keyframe_count = min(steps, MAX_KEYFRAMES)
    return frozenset(round(steps * (number + 1) / keyframe_count) for number in range(keyframe_count))


def _failure_reason(job: str, error: BaseException | None) -> tuple[str, Blame]:
    """Return the sentence and who is to blame."""
    if isinstance(error, NonFiniteOutput):
        return NOT_FINITE, "model"
    if isinstance(error, JobRejected):
        return error.sentence, error.blame
    if isinstance(error, Exception) and is_out_of_memory(error):
        return "This worker has not enough memory for a picture of this size.", "worker"
    log.error("job %s: its pipeline failed", job, exc_info=error)
    return "The model's pipeline failed at this picture.", "model"


MAX_THREADS = 64  # threads at once; later images start as earlier ones end
WAIT_SECONDS = 0.05  # seconds to wait for busy images if there is nothing else to do


@dataclass(frozen=True)
class PipelineOutputs:
    """The outputs of the forwards, one for each image of a batch."""

    images: list[PipelineImage]
    outputs: list[Any]


class PipelineBatching:
    """Used only by its engine's thread."""

    def __init__(self) -> None:
        self.batcher = ForwardBatcher()
        self._images: list[PipelineImage] = []
        self._busy: list[PipelineImage] = []
        self._ending_threads: list[Thread] = []  # of removed images, until they reach their next forward

    @property
    def has_busy_images(self) -> bool:
        """Whether some image is busy, and so becomes ready by itself."""
        return bool(self._busy)

    def add(self, image: PipelineImage) -> None:
        self._images.append(image)
        self._busy.append(image)

    def collect_ready(self, wait: bool) -> list[PipelineImage]:
        """Return images that were busy and are now ready or finished. `wait`: if there are none, wait a moment."""
        if not self._busy:
            return []
        if wait:
            self.wait_for_ready()
        else:
            self._start_threads()
        ready = self._ready_images()
        self._busy = [image for image in self._busy if image not in ready]
        return ready

    def wait_for_ready(self) -> bool:
        """Wait a moment if no busy image is ready; return whether one is. It collects none of them."""
        self._start_threads()
        if not self._ready_images():
            self._wait_briefly()
        return bool(self._ready_images())

    def run_forwards(self, batch: Sequence[PipelineImage], max_rows: int) -> PipelineOutputs:
        """Run the forwards that a batch of ready images waits for; changes no image."""
        calls = [(image, call) for image in batch if (call := image.pending_call) is not None]
        with torch.inference_mode(False), torch.no_grad():  # pipelines may write into their inputs
            outputs = self.batcher.run([call for _, call in calls], max_rows, batch[0].bucket)
        return PipelineOutputs([image for image, _ in calls], outputs)

    def resume_images(self, batch_outputs: PipelineOutputs) -> list[PipelineImage]:
        """Let each image continue to its next forward or its end. Return the images that are busy now."""
        for image, output in zip(batch_outputs.images, batch_outputs.outputs, strict=True):
            image.pipeline_thread.answer(output)
        busy = [
            image for image in batch_outputs.images if image.pipeline_thread.poll() is None or image.outcome is not None
        ]
        self._busy += busy
        return busy

    def remove(self, image: PipelineImage) -> None:
        """Remove an image in any state. Its thread ends by itself, at its next forward at the latest."""
        image.pipeline_thread.close()
        self._images.remove(image)
        if image in self._busy:
            self._busy.remove(image)
        own_thread = image.pipeline_thread.thread
        self._ending_threads = [
            thread for thread in (*self._ending_threads, own_thread) if thread is not None and thread.is_alive()
        ]

    def close(self) -> None:
        """Remove all images and wait until their threads have ended."""
        for image in list(self._images):
            self.remove(image)
        for thread in self._ending_threads:
            thread.join()
        self._ending_threads = []

    def _start_threads(self) -> None:
        self._ending_threads = [thread for thread in self._ending_threads if thread.is_alive()]
        free_threads = (
            MAX_THREADS - len(self._ending_threads) - sum(image.pipeline_thread.is_started for image in self._images)
        )
        for image in [image for image in self._busy if not image.pipeline_thread.is_started][: max(0, free_threads)]:
            image.pipeline_thread.poll(0)

    def _ready_images(self) -> list[PipelineImage]:
        return [
            image
            for image in self._busy
            if image.pipeline_thread.is_started and image.pipeline_thread.poll(0) is not None
        ]

    def _wait_briefly(self) -> None:
        started_image = next((image for image in self._busy if image.pipeline_thread.is_started), None)
        if started_image is not None:
            started_image.pipeline_thread.poll(WAIT_SECONDS)
        elif self._busy:  # the thread limit is reached by paused images
            time.sleep(WAIT_SECONDS)
