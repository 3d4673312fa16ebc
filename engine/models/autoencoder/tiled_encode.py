"""Encodes pictures in overlapping tiles where a whole encode would exceed the free memory.

As for decodes (`tiled_decode`), tiles have one size and are blended linearly, here in the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.models.autoencoder import tiled_decode
from engine.models.autoencoder.tiled_decode import (
    estimate_peak_layers,
    get_pixels_per_latent,
    list_channels,
    run_within_memory,
    split_into_spans,
)

Encode = Callable[[torch.Tensor], torch.Tensor]


def encode_within_memory(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the encoder's mean `[1, channels, h, w]`, float32 and unscaled, of pixels `[1, 3, height, width]`."""

    def encode(part: torch.Tensor) -> torch.Tensor:
        encoded = vae.encode(part)
        return (encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent).float()

    factor = get_pixels_per_latent(vae)
    if max(pixels.shape[-2:]) <= tiled_decode.TILE or any(side % factor for side in pixels.shape[-2:]):
        return encode(pixels)
    return run_within_memory(
        lambda: encode(pixels),
        lambda: encode_tiles(encode, pixels, factor),
        estimate_encode_bytes(vae, pixels),
        pixels.device,
        "an encode",
    )


def estimate_encode_bytes(vae: Any, pixels: torch.Tensor) -> int:
    """Predict the memory of a whole encode besides weights, in bytes; 0 where the configuration does not say."""
    channels = list(vae.config.get("encoder_block_out_channels") or ()) or list_channels(vae)
    if not channels:
        return 0
    height, width = pixels.shape[-2:]
    return estimate_peak_layers(vae) * height * width * channels[0] * pixels.element_size()


def encode_tiles(encode: Encode, pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the latents of a picture whose sides are multiples of `factor` (pixels a latent), encoded in tiles."""
    height, width = (side // factor for side in pixels.shape[-2:])
    tile = max(2, tiled_decode.TILE // factor)
    overlap = max(1, tiled_decode.OVERLAP // factor)
    latents: torch.Tensor | None = None
    for top, row_weights in split_into_spans(height, tile, overlap, 1):
        for left, column_weights in split_into_spans(width, tile, overlap, 1):
            part = pixels[..., factor * top : factor * (top + tile), factor * left : factor * (left + tile)]
            encoded = encode(part.contiguous())
            if latents is None:
                latents = encoded.new_zeros(1, encoded.shape[1], height, width)
            weights = (row_weights[:, None] * column_weights).to(encoded.device)
            latents[..., top : top + tile, left : left + tile] += encoded * weights
    assert latents is not None
    return latents
