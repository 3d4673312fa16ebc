"""What an autoencoder's configuration says of its latents. Knows configurations; no model."""

from __future__ import annotations

from typing import Any

from engine.known_maps import LatentSpace


def space_of(config: Any, factor: int) -> LatentSpace:
    """`factor`: pixels a latent, along a side."""
    return LatentSpace(int(config.latent_channels), float(config.scaling_factor), shift_of(config), factor)


def shift_of(config: Any) -> float:
    """What an autoencoder's latents are shifted by."""
    return float(config.get("shift_factor") or 0.0)
