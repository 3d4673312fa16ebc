"""Traits of an unknown pipeline, from its call's signature and its configurations. Pure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from engine.contract import GuidanceKind, Sampler
from engine.contract.rejection import JobRejected
from engine.pipelines.network_call import NETWORK_NAMES
from engine.sampling import is_flow, samplers_for

DEFAULT_GUIDANCE = 5.0
MAX_GUIDANCE = 30.0
DEFAULT_SIDE = 512  # pixels, where the pipeline does not say
DEFAULT_TOKENS = 77
DEFAULT_STEPS = 25
MIN_MULTIPLE = 16  # pixels; sides are multiples of this


@dataclass(frozen=True)
class PipelineTraits:
    """Named as in `Family`."""

    size: int
    multiple: int
    tokens: int
    guides: GuidanceKind
    guidance: float
    samplers: tuple[Sampler, ...]
    steps: int

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str) -> PipelineTraits:
        """Read the traits. Raises `JobRejected` where it takes no prompt, or has no network that runs step by step."""
        parameters = inspect.signature(type(pipeline).__call__).parameters
        network = next((part for each in NETWORK_NAMES if (part := getattr(pipeline, each, None)) is not None), None)
        if "prompt" not in parameters or network is None:
            raise JobRejected(
                f"The model {name} is a {type(pipeline).__name__}, which cannot draw from a prompt.", "model"
            )
        config = network.config
        factor = int(getattr(pipeline, "vae_scale_factor", 8))
        multiple = math.lcm(MIN_MULTIPLE, factor * (_read_side(config, "patch_size") or 1))
        native_latents = _read_side(cast(dict[str, Any], vars(pipeline)), "default_sample_size") or _read_side(
            config, "sample_size"
        )
        side = native_latents * factor or DEFAULT_SIDE
        guidance = _read_default(parameters, DEFAULT_GUIDANCE, "true_cfg_scale", "guidance_scale")
        return cls(
            size=max(multiple, side // multiple * multiple),
            multiple=multiple,
            tokens=int(min(4096, _read_default(parameters, DEFAULT_TOKENS, "max_sequence_length"))),
            guides="network" if config.get("guidance_embeds") else "rows",
            guidance=min(MAX_GUIDANCE, max(1.0, guidance)),
            samplers=_list_samplers(pipeline),
            steps=int(min(1000, max(1, _read_default(parameters, DEFAULT_STEPS, "num_inference_steps")))),
        )


def _list_samplers(pipeline: Any) -> tuple[Sampler, ...]:
    """Return the pipeline's own sampler, and others unless it uses flow matching: noise pipelines use all alike."""
    scheduler = getattr(pipeline, "scheduler", None)
    config: Mapping[str, Any] = {} if scheduler is None else scheduler.config
    if not config or is_flow(config):
        return ("native",)
    return ("native", *(name for name in samplers_for(config) if name != "native"))


def _read_side(config: Mapping[str, Any], name: str) -> int:
    """Return a side, which may be a list of sides; 0 where the configuration does not say."""
    value = config.get(name)
    if isinstance(value, list | tuple) and value:
        value = cast(Sequence[Any], value)[-1]
    return value if isinstance(value, int) else 0


def _read_default(parameters: Mapping[str, inspect.Parameter], fallback: float, *names: str) -> float:
    defaults = (parameters[name].default for name in names if name in parameters)
    return next((float(value) for value in defaults if isinstance(value, int | float)), fallback)
