"""The samplers' names: on the wire, and as people read them."""

from __future__ import annotations

from collections.abc import Mapping
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
# A step of these takes several forwards, corrects an earlier step, remembers more than one step, or is the model's own
# scheduler's (`NOT_TABLED_REASONS` in `engine.sampling`). The image runs through the unmodified pipeline; it shares
# forwards but cannot move to another worker midway.
PIPELINE_SAMPLERS: tuple[Sampler, ...] = ("heun", "unipc", "kdpm2", "dpmpp_3m", "native")
# These evaluate the network twice at each step but the last: 2N - 1 times in N steps. The others do so once a step.
SECOND_ORDER_SAMPLERS: tuple[Sampler, ...] = ("heun", "kdpm2")
# As AUTOMATIC1111's web UI writes them, where it has them: pictures carry their recipe in that format.
SAMPLER_TITLES: Mapping[Sampler, str] = MappingProxyType(
    {
        "ddpm": "DDPM",
        "ddim": "DDIM",
        "euler": "Euler",
        "euler_karras": "Euler Karras",
        "euler_ancestral": "Euler a",
        "dpmpp_2m": "DPM++ 2M",
        "dpmpp_2m_karras": "DPM++ 2M Karras",
        "dpmpp_2m_sde": "DPM++ 2M SDE",
        "lcm": "LCM",
        "heun": "Heun",
        "unipc": "UniPC",
        "kdpm2": "DPM2",
        "dpmpp_3m": "DPM++ 3M",
        "native": "the model's own scheduler",
    }
)
