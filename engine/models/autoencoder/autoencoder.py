"""Latents to pixels and back through a diffusers autoencoder, in the autoencoder's own number format.

Also describes its latent space.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from engine.models.autoencoder.tiled_decode import decode_within_memory
from engine.models.autoencoder.tiled_encode import encode_within_memory
from engine.preview_maps.known_maps import LatentSpace


def decode_latents(vae: Any, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return pixels `[1, 3, height, width]` in -1…1, float32, of scaled latents `[channels, height, width]`."""
    scaled = latents[None].to(device, torch.float32) / vae.config.scaling_factor + get_shift(vae.config)
    with avoid_overflow(vae):
        return decode_within_memory(vae, scaled.to(vae.dtype))


def encode_pixels(vae: Any, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return scaled latents `[channels, height, width]`, float32: the encoder's mean for pixels in -1…1."""
    with avoid_overflow(vae):
        mean = encode_within_memory(vae, pixels.to(device, vae.dtype))[0]
    return (mean - get_shift(vae.config)) * vae.config.scaling_factor


@contextmanager
def avoid_overflow(vae: Any) -> Generator[None]:
    """Use float32 for an autoencoder whose configuration says that float16 overflows, as diffusers does for SDXL."""
    overflows = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    if overflows:
        torch.nn.Module.to(vae, torch.float32)
    try:
        yield
    finally:
        if overflows:
            torch.nn.Module.to(vae, torch.float16)


def make_latent_space(config: Any, pixels_per_latent: int) -> LatentSpace:
    """Return the latent space. `pixels_per_latent`: along a side."""
    return LatentSpace(int(config.latent_channels), float(config.scaling_factor), get_shift(config), pixels_per_latent)


def get_shift(config: Any) -> float:
    """Return the shift of an autoencoder's latents."""
    return float(config.get("shift_factor") or 0.0)
