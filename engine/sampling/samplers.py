"""Maps sampler names to diffusers schedulers, per model.

A model's scheduler configuration says how it was trained: by noise (betas) or by flow matching (Lipman et al. 2022).
The same name means another scheduler for flow matching, where most names are not supported.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, get_args

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.contract import PIPELINE_SAMPLERS, Sampler
from engine.sampling.timesteps import ignore_warnings

SchedulerSpec = tuple[type, dict[str, object]]  # a scheduler and the configuration that the name fixes

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
TABLED: tuple[Sampler, ...] = tuple(name for name in SAMPLERS if name not in PIPELINE_SAMPLERS)

_NO_OTHER_SIGMAS: dict[str, object] = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS = _NO_OTHER_SIGMAS | {"use_karras_sigmas": True}
_2M: dict[str, object] = {"solver_order": 2, "algorithm_type": "dpmsolver++"}
# With Karras or similar noise levels diffusers ignores that a flow's levels end at 1.
_FLOW = _NO_OTHER_SIGMAS | {"use_karras_sigmas": False, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}

NOISE_SCHEDULERS: dict[str, SchedulerSpec] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_karras": (EulerDiscreteScheduler, _KARRAS),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, _2M),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, _2M | _KARRAS),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, _2M | {"algorithm_type": "sde-dpmsolver++"}),
    "lcm": (LCMScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "kdpm2": (KDPM2DiscreteScheduler, {}),
    "dpmpp_3m": (DPMSolverMultistepScheduler, _2M | {"solver_order": 3}),
}
FLOW_SCHEDULERS: dict[str, SchedulerSpec] = {
    "euler": (FlowMatchEulerDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, _2M | _FLOW),
    "heun": (FlowMatchHeunDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, _FLOW),
    "dpmpp_3m": (DPMSolverMultistepScheduler, _2M | _FLOW | {"solver_order": 3}),
}
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
    """Return why a model cannot use a sampler, or an empty text."""
    scheduler_class = _native_scheduler_class(config)
    if sampler not in SAMPLERS:
        return f"There is no sampler called {sampler}."
    if sampler == "native":
        return "" if scheduler_class else "This model's files do not name its own scheduler."
    if sampler not in _schedulers_for(config):
        return f"The sampler {sampler} does not work with flow-matching models; euler and dpmpp_2m do."
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
