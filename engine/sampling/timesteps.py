"""The timesteps and noise levels of a scheduler, as a pipeline sets them."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_FILTERS_LOCK = threading.Lock()


class TimestepError(ValueError):
    """The noise levels do not fit the sampler or the model. The text is a sentence."""


@dataclass(frozen=True)
class TimestepOptions:
    """A pipeline's arguments to `set_timesteps` besides the number of steps; hashable.

    `mu` shifts a noise schedule for the picture's size, and counts only for dynamic shifting (as in diffusers).
    `sigmas` are the pipeline's own noise levels, one a step. The flow form of DPM++ makes its own and ignores them, as
    the pipelines do.
    """

    mu: float | None = None
    sigmas: tuple[float, ...] | None = None


@contextmanager
def ignore_warnings(*categories: type[Warning]) -> Generator[None]:
    """Ignore these warnings, in one thread at a time: the filters are those of the whole process."""
    with _FILTERS_LOCK, warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        yield


def set_timesteps(scheduler: Any, steps: int, options: TimestepOptions = TimestepOptions()) -> None:
    """Set the timesteps as pipelines do. Raises `TimestepError`, or diffusers' error for too many steps."""
    # numpy's: of the schedulers' np.array(tensor), and of divisions by zero, after which a step is not finite
    with ignore_warnings(DeprecationWarning, RuntimeWarning):
        _call_set_timesteps(scheduler, steps, options)
    if options.sigmas is not None and len(scheduler.timesteps) != steps:
        raise TimestepError("There must be as many noise levels as steps.")
    if len(scheduler.timesteps) == steps + 1 and scheduler.timesteps[-1] < 0:
        _drop_last_timestep(scheduler, steps)
    if hasattr(scheduler, "set_begin_index"):  # otherwise, if two steps share a first timestep, diffusers skips one
        scheduler.set_begin_index(0)


def _call_set_timesteps(scheduler: Any, steps: int, options: TimestepOptions) -> None:
    has_dynamic_shift = scheduler.config.get("use_dynamic_shifting")
    if has_dynamic_shift and options.mu is None:
        raise TimestepError("This model's noise schedule depends on the picture's size, which is missing.")
    shift_arguments = {"mu": options.mu} if has_dynamic_shift else {}
    if options.sigmas is None or scheduler.config.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps, **shift_arguments)
    elif "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=list(options.sigmas), **shift_arguments)
    else:
        raise TimestepError("This sampler makes its own noise levels and accepts no others.")


def _drop_last_timestep(scheduler: Any, steps: int) -> None:
    """Drop timestep -1: with 62 numbers of steps (61, 103, …) "trailing" spacing yields one too many by rounding."""
    scheduler.timesteps = scheduler.timesteps[:steps]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
