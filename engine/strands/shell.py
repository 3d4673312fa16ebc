"""Shell: a pipeline of diffusers of one's own, unmodified but for two places that it goes through us.

It shares all weights with the pipeline it was made from, and has its own schedulers. Where it would run a denoising
network it asks (`Call`), and after each step of a sampler it tells. The networks it was made from stay as they are.
Knows the parts of pipelines; nothing of threads or jobs.
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

NETWORKS = ("unet", "transformer", "transformer_2", "prior", "decoder")  # what a pipeline runs at each step
ESTIMATES = (  # whose tuple ends with the estimate of the finished sample
    "DDIMScheduler", "DDPMScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # those keep it

Ask = Callable[[Call], Any]
Tell = Callable[["Moved"], None]
Real = Callable[[str, Any], Forward]  # a network's attribute and what the pipeline has there → what really runs


@dataclass(frozen=True)
class Moved:
    """A sampler has done `step` of `of` evaluations; where that led, and its estimate of the finished latents, if any.

    Samplers such as Heun's need several evaluations for one of their steps.
    """

    sampler: int  # the identity of its scheduler: a pipeline may have several
    step: int
    of: int
    sample: torch.Tensor
    x0: torch.Tensor | None


def shell_of(pipeline: Any, ask: Ask, tell: Tell, real: Real, scheduler: Any = None) -> Any:
    """A shell of `pipeline`; `scheduler` instead of its own, where given. Its progress bar is off."""
    shells = _Shells(ask, tell, real)
    if scheduler is not None:
        shells.known[id(pipeline.scheduler)] = watched(scheduler, tell)
    return shells.of(pipeline)


class _Shells:
    """A pipeline of pipelines shares its schedulers with them, and so do their shells."""

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
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # seconds, which a worker without one need not pay

    return isinstance(part, DiffusionPipeline)


def double(real: Forward, ask: Ask) -> Any:
    """A network of the same weights whose forward asks. It says that it computes in float32, and is taken so."""
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
    """A copy of a scheduler that tells of each step. A class of its own, so that copies of it are whole, too."""
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
    """x0 as the scheduler itself has it, or None where it has none that we know of."""
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
