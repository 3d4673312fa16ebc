"""Latent space of an autoencoder, from its configuration."""

from __future__ import annotations

from typing import Any

from engine.known_maps import LatentSpace


def space_of(config: Any, factor: int) -> LatentSpace:
    """Return the latent space. `factor`: pixels a latent, along a side."""
    return LatentSpace(int(config.latent_channels), float(config.scaling_factor), shift_of(config), factor)


def shift_of(config: Any) -> float:
    """Return the shift of an autoencoder's latents."""
    return float(config.get("shift_factor") or 0.0)
