"""Latent consistency models, whose network takes guidance as an embedded input (Luo et al. 2023, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from engine.contract import GuidanceKind
from engine.models.families.few_step_models import choose_guidance
from engine.models.family import Conditioning

DEFAULT_GUIDANCE = 8.0  # for models trained with 3 to 15


def as_stable_diffusion(pipeline: Any) -> StableDiffusionPipeline:
    """Return the parts as a Stable Diffusion pipeline, which has more inputs and differs only in its sampler."""
    parts: dict[str, Any] = {
        **pipeline.components,
        "safety_checker": None,
        "feature_extractor": None,
        "scheduler": None,
    }
    converted_pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    converted_pipeline.register_modules(scheduler=pipeline.scheduler)  # unchanged: the constructor would "correct" it
    return converted_pipeline


def detect_guides(pipeline: Any) -> GuidanceKind:
    """Return whether guidance is an input of the pipeline's U-Net, or a second row."""
    return "rows" if pipeline.unet.config.get("time_cond_proj_dim") is None else "network"


def choose_default_guidance(pipeline: Any, name: str, family_default: float) -> float:
    """Return the default guidance of a Stable Diffusion of this name; `family_default` is its family's."""
    return DEFAULT_GUIDANCE if detect_guides(pipeline) == "network" else choose_guidance(name, family_default)


def embed_guidance(pipeline: Any, guidance: float, device: torch.device) -> Conditioning:
    """Return the guidance input `[width]`, float32; nothing where the network takes none."""
    if detect_guides(pipeline) == "rows":
        return ()
    width = pipeline.unet.config.time_cond_proj_dim
    embedding = pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)
    return (embedding[0].to(device),)
