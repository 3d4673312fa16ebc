"""When a scheduler's steps are: how many, at which noise levels, from the first on. Knows schedulers, no samplers."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch


class Mistimed(ValueError):
    """The noise levels do not fit the sampler or the model. The text is a sentence."""


@dataclass(frozen=True)
class Timing:
    """What a pipeline passes to `set_timesteps` besides the number of steps; hashable.

    `mu` is how far a noise schedule is shifted for the picture's size, and counts only where the schedule shifts
    dynamically (as in diffusers). `sigmas` are noise levels of the pipeline's own, one a step; the flow form of DPM++
    makes its own (the pipelines leave them out there, too).
    """

    mu: float | None = None
    sigmas: tuple[float, ...] | None = None


def set_timesteps(scheduler: Any, steps: int, timing: Timing = Timing()) -> None:
    """As pipelines do it. Raises `Mistimed`, or what diffusers raises where it cannot take so many steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, of the schedulers' np.array(tensor)
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of divisions by zero: their step is not finite
        _pass_on(scheduler, steps, timing)
    if timing.sigmas is not None and len(scheduler.timesteps) != steps:
        raise Mistimed("There must be as many noise levels as steps.")
    if len(scheduler.timesteps) == steps + 1 and scheduler.timesteps[-1] < 0:
        _drop_the_last(scheduler, steps)
    if hasattr(scheduler, "set_begin_index"):  # else, where two steps share a first timestep, diffusers skips one
        scheduler.set_begin_index(0)


def _pass_on(scheduler: Any, steps: int, timing: Timing) -> None:
    shifts = scheduler.config.get("use_dynamic_shifting")
    if shifts and timing.mu is None:
        raise Mistimed("This model's noise schedule depends on the picture's size, and nobody has said it.")
    shift = {"mu": timing.mu} if shifts else {}
    if timing.sigmas is None or scheduler.config.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps, **shift)
    elif "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=list(timing.sigmas), **shift)
    else:
        raise Mistimed("This sampler makes its own noise levels, and takes none from outside.")


def _drop_the_last(scheduler: Any, steps: int) -> None:
    """At 62 numbers of steps (61, 103, …) "trailing" spacing counts one too many by rounding, down to timestep -1."""
    scheduler.timesteps = scheduler.timesteps[:steps]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
