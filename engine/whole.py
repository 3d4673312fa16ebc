"""Whole: one image that runs through an unmodified pipeline in its own thread; only its forwards are batched.

It is scheduled step by step beside trajectories. It has no state to snapshot, so it cannot move to another worker
midway.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.events import Developed, Event, Failed, Stepped
from engine.families.family import Spells, TakesLoras
from engine.job import MAX_RUNGS, Blame, Dtype, Job, Lora, Recipe, rows
from engine.memory import is_out_of_memory
from engine.strands.arguments import arguments
from engine.strands.call import Call, Forward
from engine.strands.shell import Moved, shell_of
from engine.strands.strand import Asked, Ended, Strand
from engine.trajectory import LatentRung
from engine.unfit import Unfit

log = logging.getLogger(__name__)

FINITE_EVERY = 10  # evaluations between checks for non-finite numbers: each check waits for the device
NOT_FINITE = "The picture came out as numbers that are not finite; another seed may work."


@runtime_checkable
class Source(Protocol):
    """What a family provides for images that run through its whole pipeline."""

    name: str
    pipeline: Any
    output_type: str  # the pipeline's output: "latent", or "pil" if only the pipeline can decode its latents
    no_guidance: float  # the pipeline's value for our guidance of 1
    alone: AbstractContextManager[Any]  # lock on the pipeline's tokenizers and autoencoder

    def scheduler(self, sampler: str) -> Any:
        """Return the scheduler for the pipeline. Raises ValueError with a sentence."""
        ...

    def forward_of(self, attribute: str, net: Any, dtype: Dtype, loras: tuple[Lora, ...]) -> Forward:
        """Return the forward that replaces the pipeline's part `net` of this name."""
        ...

    def finished(self, output: Any, width: int, height: int) -> torch.Tensor:
        """Return the pipeline's only picture, or its latents, as `finish` takes them: `[channels, height, width]`."""
        ...

    def seen(self, x0: torch.Tensor, width: int, height: int) -> torch.Tensor | None:
        """Return a sampler's x0 as `decode` takes it, or None if it cannot be shown."""
        ...

    def last_seen(self, finished: torch.Tensor) -> torch.Tensor:
        """Return the finished latents as `decode` takes them."""
        ...


class NotFinite(ArithmeticError):
    """The sampler returned numbers that are not finite."""


class Whole:
    """Image `image` of `job`. `rows`: of its next forward, or its usual number until that is known.

    `price` (milliseconds a row-step at its size) and `times` (of a forward, by rows) are calibrated. Raises ValueError
    with a sentence if the model does not support the sampler.
    """

    price = 1.0
    times: Mapping[int, float] = MappingProxyType({})

    def __init__(self, job: Job, recipe: Recipe, image: int, source: Source) -> None:
        self.job, self.image, self.share, self.model = job.id, image, job.share, source.name
        self.bucket, self.steps, self.k = recipe.bucket, recipe.steps, 0
        size = (recipe.width, recipe.height)
        self.key: Hashable = ("whole", source.name, recipe.dtype, recipe.loras, size, recipe.bucket)
        self.rungs: list[LatentRung] = []
        self._rung_at = _rungs(recipe.steps) if job.ladder else frozenset[int]()
        self._source, self._recipe, self._usual = source, recipe, rows(recipe) // recipe.count
        self._done: dict[int, Fraction] = {}  # by sampler identity; its thread writes these two
        self._x0: torch.Tensor | None = None
        self._last: torch.Tensor | None = None  # the finished latents for `decode`; its thread writes them too
        self._by_itself = ExitStack()
        self._spelt = source.spelt(recipe) if isinstance(source, Spells) else {}
        pipeline = source.pipeline
        if recipe.loras and isinstance(source, TakesLoras):
            pipeline = source.for_good(recipe)
        self._shell = shell_of(pipeline, self._ask, self._tell, self._real, source.scheduler(recipe.sampler))
        self._samplers = sum(isinstance(part, SchedulerMixin) for part in vars(self._shell).values())
        self.strand: Strand[Call, Any, torch.Tensor] = Strand(self._draw, f"strand {job.id} {image}")

    @property
    def rows(self) -> int:
        call = self.call
        return self._usual if call is None else call.rows

    @property
    def done(self) -> bool:
        return False  # the thread reports its end, not a step count

    @property
    def call(self) -> Call | None:
        """The forward that it waits for, if any."""
        rest = self.strand.rest(0) if self.strand.started else None
        return rest.question if isinstance(rest, Asked) else None

    @property
    def end(self) -> Ended[torch.Tensor] | None:
        rest = self.strand.rest(0) if self.strand.started else None
        return rest if isinstance(rest, Ended) else None

    def news(self, watched: bool) -> list[Event]:
        """Return the events since the last call: a step, its end. Any error here fails its job."""
        end = self.end  # read first: an ended thread has reported all of its steps
        try:
            if end is not None and end.result is None:
                return [Failed(self.job, *_why(self.job, end.error))]
            return [*self._advance(watched), *(self._develop(end.result) if end and end.result is not None else ())]
        except Exception as error:
            return [Failed(self.job, *_why(self.job, error))]

    def _advance(self, watched: bool) -> list[Event]:
        """Return a step event if it has done a further step; with x0 if it is `watched`."""
        k, before = int(self.steps * sum(self._done.values()) / self._samplers), self.k
        if k <= before:
            return []
        self.k, x0 = k, self._x0
        rung = any(before < step <= k for step in self._rung_at)
        wanted = x0 is not None and (rung or watched)
        seen = self._source.seen(x0, self._recipe.width, self._recipe.height) if wanted and x0 is not None else None
        if rung and seen is not None:
            self.rungs.append(LatentRung(k, seen.clone()))
        return [Stepped(self.job, self.image, k, self.steps, seen if watched else None)]

    def _develop(self, finished: torch.Tensor) -> list[Event]:
        """Return its last events. A ladder needs a keyframe: if the sampler showed no x0, use the finished latents."""
        if self._last is not None and not self.rungs:
            self.rungs.append(LatentRung(self.steps, self._last))
        rest = [Stepped(self.job, self.image, self.steps, self.steps)] if self.k < self.steps else []
        self.k = self.steps
        return [*rest, Developed(self.job, self.image, finished, tuple(self.rungs))]

    def _draw(self, strand: Strand[Call, Any, torch.Tensor]) -> torch.Tensor:
        """Run the pipeline; this is all of the thread's work."""
        source = self._source
        with torch.no_grad(), self._by_itself:
            self._enter()
            words = arguments(self._shell, self._recipe, self.image, source.output_type, source.no_guidance)
            output = self._shell(**(words | self._spelt))
            finished = source.finished(output.images, self._recipe.width, self._recipe.height)
            self._last = self._look_at(finished) if self._rung_at and not self.rungs else None
            return finished

    def _look_at(self, finished: torch.Tensor) -> torch.Tensor:
        """Return the last keyframe's latents. It runs in the thread, since it may be a forward of the autoencoder."""
        size, x0 = (self._recipe.width, self._recipe.height), self._x0
        seen = None if x0 is None else self._source.seen(x0, *size)
        if seen is not None:
            return seen
        self._enter()
        return self._source.last_seen(finished)

    def _enter(self) -> None:
        """In the thread: hold the pipeline's lock up to the next forward.

        Tokenizers are reconfigured per text (padding, truncation), and some autoencoders cache their last input. Two
        threads in them at once gave a wrong picture in one of twelve runs.
        """
        self._by_itself.close()
        self._by_itself.enter_context(self._source.alone)
        self.strand.check()

    def _ask(self, call: Call) -> Any:
        self._by_itself.close()
        return self.strand.ask(call)

    def _real(self, attribute: str, net: Any) -> Forward:
        return self._source.forward_of(attribute, net, self._recipe.dtype, self._recipe.loras)

    def _tell(self, moved: Moved) -> None:
        """In the thread, after each evaluation. After a sampler's last one, the engine need not wait for it."""
        self.strand.check()
        last = moved.step >= moved.of
        if (last or moved.step % FINITE_EVERY == 0) and not bool(moved.sample.isfinite().all()):
            raise NotFinite
        self._x0 = moved.x0
        self._done = {**self._done, moved.sampler: min(Fraction(1), Fraction(moved.step, max(1, moved.of)))}
        if last:
            self.strand.go_on_alone()
            self._enter()


def _rungs(steps: int) -> frozenset[int]:
    """Return the keyframe steps, evenly spaced: the change per step of these samplers is not known beforehand."""
    most = min(steps, MAX_RUNGS)
    return frozenset(round(steps * (number + 1) / most) for number in range(most))


def _why(job: str, error: BaseException | None) -> tuple[str, Blame]:
    """Return the sentence and who is to blame."""
    if isinstance(error, NotFinite):
        return NOT_FINITE, "model"
    if isinstance(error, Unfit):
        return error.sentence, error.blame
    if isinstance(error, Exception) and is_out_of_memory(error):
        return "This worker has not enough memory for a picture of this size.", "worker"
    log.error("job %s: its pipeline failed", job, exc_info=error)
    return "The model's pipeline failed at this picture.", "model"
