"""Latent space of an autoencoder, from its configuration."""

from __future__ import annotations

from typing import Any

from engine.known_maps import LatentSpace


def make_latent_space(config: Any, pixels_per_latent: int) -> LatentSpace:
    """Return the latent space. `factor`: pixels a latent, along a side."""
    return LatentSpace(int(config.latent_channels), float(config.scaling_factor), get_shift(config), pixels_per_latent)


def get_shift(config: Any) -> float:
    """Return the shift of an autoencoder's latents."""
    return float(config.get("shift_factor") or 0.0)
