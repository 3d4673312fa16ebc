"""Clones a diffusers pipeline, unmodified but for two hooks: at each denoising forward and after each sampler step.

The clone shares all weights with its pipeline, and has its own schedulers. The original networks stay unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.strands.call import Call, Forward, Reader

NETWORKS = (
    "unet",
    "transformer",
    "transformer_2",
    "prior",
    "decoder",
)  # the networks that a pipeline runs at each step
ESTIMATES = (  # schedulers whose result tuple ends with x0
    "DDIMScheduler", "DDPMScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # schedulers that store x0

Ask = Callable[[Call], Any]
Tell = Callable[["Moved"], None]
Real = Callable[[str, Any], Forward]  # attribute name and the pipeline's network → the forward to run


@dataclass(frozen=True)
class Moved:
    """A sampler has done `step` of `of` evaluations: its sample, and its x0 if known.

    Samplers such as Heun's need several evaluations per step.
    """

    sampler: int  # its scheduler's identity: a pipeline may have several
    step: int
    of: int
    sample: torch.Tensor
    x0: torch.Tensor | None


def shell_of(pipeline: Any, ask: Ask, tell: Tell, real: Real, scheduler: Any = None) -> Any:
    """Return a clone of `pipeline`, with `scheduler` in place of its own if given. Its progress bar is off."""
    shells = _Shells(ask, tell, real)
    if scheduler is not None:
        shells.known[id(pipeline.scheduler)] = watched(scheduler, tell)
    return shells.of(pipeline)


class _Shells:
    """Clones a pipeline. Nested pipelines share schedulers, and so do their clones."""

    def __init__(self, ask: Ask, tell: Tell, real: Real) -> None:
        self._ask, self._tell, self._real = ask, tell, real
        self.known: dict[int, Any] = {}

    def of(self, pipeline: Any) -> Any:
        shell = copy.copy(pipeline)
        for name, part in list(vars(pipeline).items()):
            vars(shell)[name] = self._part(name, part)
        shell.set_progress_bar_config(disable=True)
        return shell

    def _part(self, name: str, part: Any) -> Any:
        ours = isinstance(part, SchedulerMixin) or _is_pipeline(part)
        if not ours and not (isinstance(part, torch.nn.Module) and name in NETWORKS):
            return part
        if id(part) not in self.known:
            self.known[id(part)] = self._made(name, part)
        return self.known[id(part)]

    def _made(self, name: str, part: Any) -> Any:
        if _is_pipeline(part):
            return self.of(part)
        if isinstance(part, SchedulerMixin):
            return watched(part, self._tell)
        return double(self._real(name, part), self._ask)


def _is_pipeline(part: Any) -> bool:
    from diffusers.pipelines.pipeline_utils import (
        DiffusionPipeline,
    )  # takes seconds to import, which a worker without pipelines need not wait

    return isinstance(part, DiffusionPipeline)


def double(real: Forward, ask: Ask) -> Any:
    """Return a network with the same weights whose forward calls `ask`. It reports float32 as its dtype."""
    twin, reader = copy.copy(real.net), Reader(real)

    @wraps(real.net.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return ask(reader.read(args, kwargs))

    twin.forward = forward
    if real.kind is not None:
        kind = type(twin)
        twin.__class__ = type(kind.__name__, (kind,), {"dtype": property(lambda self: torch.float32)})
    return twin


def watched(scheduler: Any, tell: Tell) -> Any:
    """Return a copy of a scheduler that reports each step. It has its own class, so that copies of it work too."""
    own, kind = copy.deepcopy(scheduler), type(scheduler)

    @wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = kind.step(self, *args, **kwargs)
        self.steps_told = getattr(self, "steps_told", 0) + 1
        sample, x0 = _sample(result), _estimate(self, kind.__name__, args, result)
        tell(Moved(id(self), self.steps_told, len(self.timesteps), sample, x0))
        return result

    own.__class__ = type(kind.__name__, (kind,), {"step": step})
    return own


def _sample(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result.prev_sample


def _estimate(scheduler: Any, kind: str, args: tuple[Any, ...], result: Any) -> torch.Tensor | None:
    """Return the scheduler's own x0, or None if it is not known to have one."""
    if isinstance(result, dict) and result.get("pred_original_sample") is not None:
        return result["pred_original_sample"]
    if kind in ESTIMATES and isinstance(result, tuple) and len(result) > 1:
        return result[1]
    config = scheduler.config
    if kind in MULTISTEP and (config.get("predict_x0") or "++" in str(config.get("algorithm_type"))):
        return scheduler.model_outputs[-1]
    if kind == "FlowMatchEulerDiscreteScheduler" and len(args) >= 3 and scheduler.step_index:
        sigma = scheduler.sigmas[scheduler.step_index - 1]  # x = (1 - sigma)·x0 + sigma·noise (Lipman et al. 2022)
        return args[2].float() - sigma * args[0].float()
    return None
