"""Latent consistency models, whose network takes guidance as an input, embedded (Luo et al. 2023, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch

from engine.families.family import Conditions
from engine.job import Guides


def guides_of(pipeline: Any) -> Guides:
    """Whether guidance is an input of this pipeline's U-Net, or a second row."""
    return "rows" if pipeline.unet.config.get("time_cond_proj_dim") is None else "network"


def embedded_guidance(pipeline: Any, guidance: float, device: torch.device) -> Conditions:
    """That input `[width]`, float32; nothing where the network takes none."""
    if guides_of(pipeline) == "rows":
        return ()
    width = pipeline.unet.config.time_cond_proj_dim
    embedded = pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)
    return (embedded[0].to(device),)
