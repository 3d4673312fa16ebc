"""Traits of an unknown pipeline, from its call's signature and its configurations. Pure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.job import Guides, Sampler
from engine.plan import is_flow, samplers_for
from engine.strands.shell import NETWORKS
from engine.unfit import Unfit

GUIDANCE, MOST_GUIDANCE = 5.0, 30.0
SIDE = 512  # pixels, where the pipeline does not say
TOKENS = 77
STEPS = 25
LEAST = 16  # pixels; sides are multiples of this


@dataclass(frozen=True)
class Traits:
    """Named as in `Family`."""

    size: int
    multiple: int
    tokens: int
    guides: Guides
    guidance: float
    samplers: tuple[Sampler, ...]
    steps: int

    @classmethod
    def of(cls, pipeline: Any, name: str) -> Traits:
        """Read the traits. Raises `Unfit` where it takes no prompt, or has no network that runs step by step."""
        known = inspect.signature(type(pipeline).__call__).parameters
        network = next((part for each in NETWORKS if (part := getattr(pipeline, each, None)) is not None), None)
        if "prompt" not in known or network is None:
            raise Unfit(f"The model {name} is a {type(pipeline).__name__}, which cannot draw from a prompt.", "model")
        config, factor = network.config, int(getattr(pipeline, "vae_scale_factor", 8))
        multiple = math.lcm(LEAST, factor * (_number(config, "patch_size") or 1))
        latents = _number(vars(pipeline), "default_sample_size") or _number(config, "sample_size")
        side = latents * factor or SIDE
        guidance = _default(known, GUIDANCE, "true_cfg_scale", "guidance_scale")
        return cls(
            size=max(multiple, side // multiple * multiple), multiple=multiple,
            tokens=int(min(4096, _default(known, TOKENS, "max_sequence_length"))),
            guides="network" if config.get("guidance_embeds") else "rows",
            guidance=min(MOST_GUIDANCE, max(1.0, guidance)), samplers=_samplers(pipeline),
            steps=int(min(1000, max(1, _default(known, STEPS, "num_inference_steps")))),
        )  # fmt: skip


def _samplers(pipeline: Any) -> tuple[Sampler, ...]:
    """Return the pipeline's own sampler, and others unless it uses flow matching: noise pipelines use all alike."""
    scheduler = getattr(pipeline, "scheduler", None)
    config: Mapping[str, Any] = {} if scheduler is None else scheduler.config
    if not config or is_flow(config):
        return ("native",)
    return ("native", *(name for name in samplers_for(config) if name != "native"))


def _number(config: Mapping[str, Any], name: str) -> int:
    """Return a side, which may be a list of sides; 0 where the configuration does not say."""
    value = config.get(name)
    value = value[-1] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, int) else 0


def _default(known: Mapping[str, inspect.Parameter], usual: float, *names: str) -> float:
    given = (known[name].default for name in names if name in known)
    return next((float(value) for value in given if isinstance(value, int | float)), usual)
