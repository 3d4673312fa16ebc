"""Which of a backend's samplers is which of ours. A sampler that it lacks is not offered. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from engine.contract import SAMPLER_TITLES, Sampler

KARRAS = "karras"


class BackendSampler(NamedTuple):
    """A backend's sampler, and its scheduler of noise levels; "" where the backend has none to choose."""

    name: str
    scheduler: str = ""


# ComfyUI names the method and the spacing of its noise levels apart. It lacks DPM++ 3M without noise.
COMFYUI_SAMPLERS: Mapping[Sampler, BackendSampler] = MappingProxyType(
    {
        "ddpm": BackendSampler("ddpm", "normal"),
        "ddim": BackendSampler("ddim", "ddim_uniform"),
        "euler": BackendSampler("euler", "normal"),
        "euler_karras": BackendSampler("euler", KARRAS),
        "euler_ancestral": BackendSampler("euler_ancestral", "normal"),
        "dpmpp_2m": BackendSampler("dpmpp_2m", "normal"),
        "dpmpp_2m_karras": BackendSampler("dpmpp_2m", KARRAS),
        "dpmpp_2m_sde": BackendSampler("dpmpp_2m_sde", "normal"),
        "lcm": BackendSampler("lcm", "sgm_uniform"),
        "heun": BackendSampler("heun", "normal"),
        "unipc": BackendSampler("uni_pc", "normal"),
        "kdpm2": BackendSampler("dpm_2", "normal"),
    }
)
PREFERRED: tuple[Sampler, ...] = ("dpmpp_2m_karras", "dpmpp_2m", "euler", "ddim")


def match_comfyui_samplers(names: Collection[str], schedulers: Collection[str]) -> dict[Sampler, BackendSampler]:
    """Return ours that a ComfyUI with these samplers and schedulers has. No schedulers: it has none to choose."""
    return {
        sampler: own
        for sampler, own in COMFYUI_SAMPLERS.items()
        if own.name in names and (not schedulers or own.scheduler in schedulers)
    }


def match_a1111_samplers(names: Collection[str], schedulers: Collection[str]) -> dict[Sampler, BackendSampler]:
    """Return ours that an AUTOMATIC1111 has, by the titles that both use; Karras may be a scheduler of its own."""
    return dict(_match_titles(names, schedulers))


def _match_titles(names: Collection[str], schedulers: Collection[str]) -> Iterator[tuple[Sampler, BackendSampler]]:
    for sampler, title in SAMPLER_TITLES.items():
        base = title.removesuffix(" Karras")
        if title in names or sampler in names:
            yield sampler, BackendSampler(title if title in names else sampler)
        elif base != title and base in names and KARRAS in schedulers:
            yield sampler, BackendSampler(base, KARRAS)


def sort_samplers(samplers: Collection[Sampler]) -> tuple[Sampler, ...]:
    """Return them with the best default first: few steps, no noise of its own."""
    preferred: list[Sampler] = [sampler for sampler in PREFERRED if sampler in samplers]
    others: list[Sampler] = [sampler for sampler in samplers if sampler not in preferred]
    return (*preferred, *others)
