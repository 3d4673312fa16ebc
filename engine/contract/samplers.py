"""The samplers, one row each: names on the wire, for people and in other programs, and schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Sampler = Literal[
    "ddpm",
    "ddim",
    "euler",
    "euler_karras",
    "euler_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "lcm",
    "heun",
    "unipc",
    "kdpm2",
    "dpmpp_3m",
    "native",
]
SchedulerName = tuple[str, Mapping[str, object]]  # a class of diffusers, and the configuration that the sampler fixes


@dataclass(frozen=True)
class SamplerRow:
    """A sampler.

    `title`: as AUTOMATIC1111's web UI writes it, where it has it: pictures carry their recipe in that format.
    `noise`, `flow`: its scheduler for models trained by noise and by flow matching; None where it does not work.
    `other_names`: of other programs, in the form in which they are compared: small letters and digits, p for +, without
    "sample" and "scheduler". Its own name and title need not be there. `comfyui`: ComfyUI's method and spacing of the
    noise levels. `pipeline_reason`: why a step is no row of a table; empty where it is one. `is_second_order`: a step
    evaluates the network twice, but the last: 2N - 1 times in N steps.
    """

    name: Sampler
    title: str
    advice: str
    noise: SchedulerName | None = None
    flow: SchedulerName | None = None
    other_names: tuple[str, ...] = ()
    comfyui: tuple[str, str] | None = None
    pipeline_reason: str = ""
    is_second_order: bool = False


_NO_OTHER_SIGMAS: dict[str, object] = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS = _NO_OTHER_SIGMAS | {"use_karras_sigmas": True}
_2M: dict[str, object] = {"solver_order": 2, "algorithm_type": "dpmsolver++"}
# With Karras or similar noise levels diffusers ignores that a flow's levels end at 1.
_FLOW = _NO_OTHER_SIGMAS | {"use_karras_sigmas": False, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_MULTISTEP = "DPMSolverMultistepScheduler"

# In the order of `Sampler`: those with a table come first.
SAMPLER_ROWS: tuple[SamplerRow, ...] = (
    SamplerRow("ddpm", "DDPM", "the full chain", noise=("DDPMScheduler", {}), comfyui=("ddpm", "normal")),
    SamplerRow("ddim", "DDIM", "even steps", noise=("DDIMScheduler", {}), comfyui=("ddim", "ddim_uniform")),
    SamplerRow(
        "euler",
        "Euler",
        "quick",
        noise=("EulerDiscreteScheduler", {}),
        flow=("FlowMatchEulerDiscreteScheduler", {}),
        other_names=("eulerdiscrete",),
        comfyui=("euler", "normal"),
    ),
    SamplerRow(
        "euler_karras",
        "Euler Karras",
        "quick, with more of its steps for detail",
        noise=("EulerDiscreteScheduler", _KARRAS),
        comfyui=("euler", "karras"),
    ),
    SamplerRow(
        "euler_ancestral",
        "Euler a",
        "lively: new noise at each step",
        noise=("EulerAncestralDiscreteScheduler", {}),
        other_names=("eulera", "eulerancestraldiscrete"),
        comfyui=("euler_ancestral", "normal"),
    ),
    SamplerRow(
        "dpmpp_2m",
        "DPM++ 2M",
        "good in 30 steps",
        noise=(_MULTISTEP, _2M),
        flow=(_MULTISTEP, _2M | _FLOW),
        other_names=("dpmsolverpp", "dpmsolvermultistep"),
        comfyui=("dpmpp_2m", "normal"),
    ),
    SamplerRow(
        "dpmpp_2m_karras",
        "DPM++ 2M Karras",
        "good in 20 to 30 steps",
        noise=(_MULTISTEP, _2M | _KARRAS),
        comfyui=("dpmpp_2m", "karras"),
    ),
    SamplerRow(
        "dpmpp_2m_sde",
        "DPM++ 2M SDE",
        "good in 30 steps, with new noise at each",
        noise=(_MULTISTEP, _2M | {"algorithm_type": "sde-dpmsolver++"}),
        comfyui=("dpmpp_2m_sde", "normal"),
    ),
    SamplerRow(
        "lcm", "LCM", "4 to 8 steps, for models made for it", noise=("LCMScheduler", {}), comfyui=("lcm", "sgm_uniform")
    ),
    SamplerRow(
        "heun",
        "Heun",
        "each step twice: slow and exact",
        noise=("HeunDiscreteScheduler", {}),
        flow=("FlowMatchHeunDiscreteScheduler", {}),
        other_names=("heundiscrete",),
        comfyui=("heun", "normal"),
        pipeline_reason="Heun's method runs the network twice a step, which cannot be batched by step.",
        is_second_order=True,
    ),
    SamplerRow(
        "unipc",
        "UniPC",
        "good in few steps",
        noise=("UniPCMultistepScheduler", {}),
        flow=("UniPCMultistepScheduler", _FLOW),
        other_names=("unipcbh2", "unipcmultistep"),
        comfyui=("uni_pc", "normal"),
        pipeline_reason="UniPC corrects its previous step afterwards, which cannot be batched by step.",
    ),
    SamplerRow(
        "kdpm2",
        "DPM2",
        "each step twice",
        noise=("KDPM2DiscreteScheduler", {}),
        other_names=("dpm2", "kdpm2discrete"),
        comfyui=("dpm_2", "normal"),
        pipeline_reason="KDPM2 runs the network twice a step, which cannot be batched by step.",
        is_second_order=True,
    ),
    SamplerRow(
        "dpmpp_3m",
        "DPM++ 3M",
        "third order, for many steps",
        noise=(_MULTISTEP, _2M | {"solver_order": 3}),
        flow=(_MULTISTEP, _2M | _FLOW | {"solver_order": 3}),
        pipeline_reason="A solver of third order looks back two steps, which cannot be batched by step.",
    ),
    SamplerRow(
        "native",
        "the model's own scheduler",
        "as the model comes",
        other_names=("own",),
        pipeline_reason="A model's own scheduler may do anything, which cannot be batched by step.",
    ),
)
# The image runs through the unmodified pipeline; it shares forwards but cannot move to another worker midway.
PIPELINE_SAMPLERS: tuple[Sampler, ...] = tuple(row.name for row in SAMPLER_ROWS if row.pipeline_reason)
SECOND_ORDER_SAMPLERS: tuple[Sampler, ...] = tuple(row.name for row in SAMPLER_ROWS if row.is_second_order)
SAMPLER_TITLES: Mapping[Sampler, str] = MappingProxyType({row.name: row.title for row in SAMPLER_ROWS})
