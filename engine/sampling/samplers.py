"""Maps sampler names to diffusers schedulers, per model.

A model's scheduler configuration says how it was trained: by noise (betas) or by flow matching (Lipman et al. 2022).
The same name means another scheduler for flow matching, where most names are not supported.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.contract import PIPELINE_SAMPLERS, Sampler
from engine.contract.fields import SAMPLER_ROWS, SchedulerName

SchedulerSpec = tuple[type, dict[str, object]]  # a scheduler and the configuration that the name fixes

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
TABLED: tuple[Sampler, ...] = tuple(name for name in SAMPLERS if name not in PIPELINE_SAMPLERS)


def _find_scheduler(scheduler: SchedulerName) -> SchedulerSpec:
    class_name, overrides = scheduler
    return getattr(import_module("diffusers"), class_name), dict(overrides)


NOISE_SCHEDULERS: dict[str, SchedulerSpec] = {row.name: _find_scheduler(row.noise) for row in SAMPLER_ROWS if row.noise}
FLOW_SCHEDULERS: dict[str, SchedulerSpec] = {row.name: _find_scheduler(row.flow) for row in SAMPLER_ROWS if row.flow}
# StableDiffusionPipeline writes these into its scheduler's configuration; without them latents differ by 8e-3. They are
# defaults: a value in the configuration wins, as in every pipeline.
PIPELINE_DEFAULTS = {"steps_offset": 1, "clip_sample": False}


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Return whether the model was trained by flow matching: x = (1 - sigma)·x0 + sigma·noise; it predicts velocity."""
    return (
        str(scheduler_config.get("_class_name", "")).startswith("FlowMatch")
        or scheduler_config.get("prediction_type") == "flow_prediction"
        or bool(scheduler_config.get("use_flow_sigmas"))
    )


def samplers_for(scheduler_config: Mapping[str, Any]) -> tuple[Sampler, ...]:
    """Return the samplers that suit a model: those with a table first, then those for an unmodified pipeline.

    It decides by the name alone. If the model's scheduler clips, or its network predicts the variance,
    `engine.sampling.plan` still refuses a table.
    """
    return tuple(name for name in SAMPLERS if not _refusal_reason(scheduler_config, name))


def build_scheduler(scheduler_config: Mapping[str, Any], sampler: str) -> Any:
    """Return the diffusers scheduler that `sampler` means for this model. Raises ValueError with a sentence."""
    refusal = _refusal_reason(scheduler_config, sampler)
    if refusal:
        raise ValueError(refusal)
    scheduler_class, overrides = (
        (_native_scheduler_class(scheduler_config), {})
        if sampler == "native"
        else _schedulers_for(scheduler_config)[sampler]
    )
    assert scheduler_class is not None  # `_refusal_reason` checked it
    config = (
        {**scheduler_config}
        if sampler == "native"
        else {**PIPELINE_DEFAULTS, **_with_both_shifts(scheduler_config), **overrides}
    )
    parameters = inspect.signature(scheduler_class).parameters
    try:
        with ignore_warnings(DeprecationWarning):  # numpy's, of the schedulers' np.array(tensor)
            return scheduler_class(**{name: value for name, value in config.items() if name in parameters})
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"The sampler {sampler} does not know this model's noise schedule.") from error


def _refusal_reason(config: Mapping[str, Any], sampler: str) -> str:
    scheduler_class = _native_scheduler_class(config)
    if sampler not in SAMPLERS:
        return f"There is no sampler called {sampler}."
    if sampler == "native":
        return "" if scheduler_class else "This model's files do not name its own scheduler."
    if sampler not in _schedulers_for(config):
        return f"The sampler {sampler} does not work with flow-matching models; {', '.join(FLOW_SCHEDULERS)} do."
    if is_flow(config):
        return _flow_refusal_reason(config, sampler)
    if scheduler_class and "beta_start" not in inspect.signature(scheduler_class).parameters:
        return "This model's noise schedule is its own, so the only sampler it has is native."
    if sampler in ("heun", "kdpm2") and config.get("rescale_betas_zero_snr"):
        return f"The sampler {sampler} cannot begin at pure noise, as this model does."
    if sampler in ("euler_ancestral", "kdpm2") and config.get("prediction_type") == "sample":
        return f"The sampler {sampler} is not for models that predict the finished picture itself."
    return ""


def _flow_refusal_reason(config: Mapping[str, Any], sampler: str) -> str:
    if sampler == "heun" and config.get("use_dynamic_shifting"):
        return "The sampler heun is not for models whose noise schedule depends on the picture's size."
    if sampler != "euler" and config.get("invert_sigmas"):
        return f"The sampler {sampler} is not for models whose noise schedule runs backwards."
    return ""


def _schedulers_for(config: Mapping[str, Any]) -> dict[str, SchedulerSpec]:
    return FLOW_SCHEDULERS if is_flow(config) else NOISE_SCHEDULERS


def _native_scheduler_class(config: Mapping[str, Any]) -> type | None:
    """Return the class that a configuration names, if it is a diffusers scheduler; the file is untrusted."""
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        return None
    scheduler_class = getattr(import_module("diffusers"), name, None)
    return (
        scheduler_class if isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin) else None
    )


def _with_both_shifts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with the flow's shift under both names that schedulers use for it."""
    shift = config.get("shift", config.get("flow_shift"))
    return {**config, "shift": shift, "flow_shift": shift} if shift is not None else dict(config)


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
