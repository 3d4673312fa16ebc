"""Clones a diffusers pipeline, unmodified but for two hooks: at each denoising forward and after each sampler step.

The clone shares all weights with its pipeline, and has its own schedulers. The original networks stay unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.pipelines.network_call import CallAnalyzer, NetworkCall, NetworkForward

NETWORK_NAMES = (
    "unet",
    "transformer",
    "transformer_2",
    "prior",
    "decoder",
)  # the networks that a pipeline runs at each step
TEXT_ENCODER_PREFIX = "text_encoder"  # of the names of a pipeline's text encoders
X0_SCHEDULERS = (  # schedulers whose result tuple ends with x0
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
)
MULTISTEP_SCHEDULERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # schedulers that store x0

RunCall = Callable[[NetworkCall], Any]
OnSamplerStep = Callable[["SamplerProgress"], None]
MakeForward = Callable[[str, Any], NetworkForward]  # attribute name and the pipeline's network → the forward to run


@dataclass(frozen=True)
class SamplerProgress:
    """A sampler has done `step` of `total_steps` evaluations: its sample, and its x0 if known.

    Samplers such as Heun's need several evaluations per step.
    """

    sampler: int  # its scheduler's identity: a pipeline may have several
    step: int
    total_steps: int
    sample: torch.Tensor
    x0: torch.Tensor | None


def clone_pipeline(
    pipeline: Any, run_call: RunCall, on_step: OnSamplerStep, make_forward: MakeForward, scheduler: Any = None
) -> Any:
    """Return a clone of `pipeline`, with `scheduler` in place of its own if given. Its progress bar is off."""
    cloner = _PipelineCloner(run_call, on_step, make_forward)
    if scheduler is not None:
        cloner.clones[id(pipeline.scheduler)] = watch_scheduler(scheduler, on_step)
    return cloner.clone(pipeline)


class _PipelineCloner:
    """Clones a pipeline. Nested pipelines share schedulers, and so do their clones."""

    def __init__(self, run_call: RunCall, on_step: OnSamplerStep, make_forward: MakeForward) -> None:
        self._run_call = run_call
        self._on_step = on_step
        self._make_forward = make_forward
        self.clones: dict[int, Any] = {}

    def clone(self, pipeline: Any) -> Any:
        clone = copy.copy(pipeline)
        for name, part in list(cast(dict[str, Any], vars(pipeline)).items()):
            vars(clone)[name] = self._clone_part(name, part)
        clone.set_progress_bar_config(disable=True)
        return clone

    def _clone_part(self, name: str, part: Any) -> Any:
        is_cloned = isinstance(part, SchedulerMixin) or _is_pipeline(part)
        if not is_cloned and not (isinstance(part, torch.nn.Module) and name in NETWORK_NAMES):
            return part
        if id(part) not in self.clones:
            self.clones[id(part)] = self._make_clone(name, part)
        return self.clones[id(part)]

    def _make_clone(self, name: str, part: Any) -> Any:
        if _is_pipeline(part):
            return self.clone(part)
        if isinstance(part, SchedulerMixin):
            return watch_scheduler(part, self._on_step)
        return wrap_network(self._make_forward(name, part), self._run_call)


def _is_pipeline(part: Any) -> bool:
    from diffusers.pipelines.pipeline_utils import (
        DiffusionPipeline,
    )  # takes seconds to import, which a worker without pipelines need not wait

    return isinstance(part, DiffusionPipeline)


def wrap_network(real_forward: NetworkForward, run_call: RunCall) -> Any:
    """Return a network with the same weights whose forward calls `run_call`. It reports float32 as its dtype."""
    network_copy = copy.copy(real_forward.net)
    analyzer = CallAnalyzer(real_forward)

    @wraps(real_forward.net.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return run_call(analyzer.analyze(args, kwargs))

    network_copy.forward = forward
    if real_forward.dtype is not None:
        network_class = cast(type[Any], type(network_copy))
        network_copy.__class__ = type(
            network_class.__name__, (network_class,), {"dtype": property(lambda self: torch.float32)}
        )
    return network_copy


def watch_scheduler(scheduler: Any, on_step: OnSamplerStep) -> Any:
    """Return a copy of a scheduler that reports each step. It has its own class, so that copies of it work too."""
    scheduler_copy = copy.deepcopy(scheduler)
    scheduler_class = cast(type[Any], type(scheduler))

    @wraps(scheduler_class.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = scheduler_class.step(self, *args, **kwargs)
        self.reported_steps = getattr(self, "reported_steps", 0) + 1
        sample = _get_sample(result)
        x0 = _get_x0(self, scheduler_class.__name__, args, result)
        on_step(SamplerProgress(id(self), self.reported_steps, len(self.timesteps), sample, x0))
        return result

    scheduler_copy.__class__ = type(scheduler_class.__name__, (scheduler_class,), {"step": step})
    return scheduler_copy


def _get_sample(result: Any) -> torch.Tensor:
    return cast(tuple[Any, ...], result)[0] if isinstance(result, tuple) else result.prev_sample


def _get_x0(scheduler: Any, class_name: str, args: tuple[Any, ...], result: Any) -> torch.Tensor | None:
    """Return the scheduler's own x0, or None if it is not known to have one."""
    if isinstance(result, dict) and cast(dict[str, Any], result).get("pred_original_sample") is not None:
        return cast(dict[str, Any], result)["pred_original_sample"]
    if class_name in X0_SCHEDULERS and isinstance(result, tuple) and len(outputs := cast(tuple[Any, ...], result)) > 1:
        return outputs[1]
    config = scheduler.config
    if class_name in MULTISTEP_SCHEDULERS and (config.get("predict_x0") or "++" in str(config.get("algorithm_type"))):
        return scheduler.model_outputs[-1]
    if class_name == "FlowMatchEulerDiscreteScheduler" and len(args) >= 3 and scheduler.step_index:
        sigma = scheduler.sigmas[scheduler.step_index - 1]  # x = (1 - sigma)·x0 + sigma·noise (Lipman et al. 2022)
        return args[2].float() - sigma * args[0].float()
    return None
