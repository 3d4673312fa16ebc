"""The named architectures of an autoencoder from scratch, and its construction.

They are configurations of diffusers' `AutoencoderKL`, all for 64 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


def _make_shape(latent_channels: int, *widths: int) -> dict[str, Any]:
    levels = len(widths)
    return {
        "sample_size": 64,
        "latent_channels": latent_channels,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "block_out_channels": widths,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }


AUTOENCODER_SHAPES: dict[str, dict[str, Any]] = {
    "compact": _make_shape(16, 16, 48, 128, 192),  # 8×8×16, 6.4 M parameters
    "deep": _make_shape(32, 32, 64, 128, 256),  # 8×8×32, 10.5 M
    "wide": _make_shape(8, 32, 64, 192),  # 16×16×8: the embedded model's, 5.3 M
}


def build_autoencoder(seed: int, shape: Mapping[str, Any] = AUTOENCODER_SHAPES["compact"]) -> AutoencoderKL:
    """Build an untrained autoencoder."""
    torch.manual_seed(seed)
    return AutoencoderKL(**shape)
