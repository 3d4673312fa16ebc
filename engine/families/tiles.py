"""Decodes latents in overlapping tiles where decoding them whole would take more memory than there is.

Tiles are of one size, and blended linearly: the pixels are a function of the latents alone. Knows modules; no model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from engine.budget import room_for_pictures
from engine.memory import is_out_of_memory
from engine.sizes import said

log = logging.getLogger(__name__)

TILE, OVERLAP = 512, 128  # pixels along a side
CHANNELS_LAST, CONTIGUOUS = 6, 8  # the most that a decoder holds at once, in layers of its first block's size; measured
Decode = Callable[[torch.Tensor], torch.Tensor]
Span = tuple[int, torch.Tensor]  # a tile's first latent along a side, and its weight at each of its pixels


def decode_within_memory(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels `[1, 3, height, width]`, float32, of latents `[1, channels, height, width]` as the decoder takes them."""

    def decode(part: torch.Tensor) -> torch.Tensor:
        return vae.decode(part, return_dict=False)[0].float()

    factor = pixels_a_latent(vae)
    if factor * max(latents.shape[-2:]) <= TILE:
        return decode(latents)  # tiles would take as much
    size, room = activation_bytes(vae, latents), room_for_pictures(latents.device)
    if size <= room:
        try:
            return decode(latents)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    log.warning("a decode takes about %s, and there is %s: it is decoded in tiles", said(size), said(room))
    return decode_tiles(decode, latents, factor)


def activation_bytes(vae: Any, latents: torch.Tensor) -> int:
    """Predicts what a whole decode takes besides weights; 0 where the configuration does not say."""
    channels = _channels(vae)
    if not channels:
        return 0
    height, width = (side * pixels_a_latent(vae) for side in latents.shape[-2:])
    return _layers(vae) * height * width * channels[0] * latents.element_size()


def pixels_a_latent(vae: Any) -> int:
    """Along a side: each block of the decoder but one doubles."""
    return 2 ** max(0, len(_channels(vae)) - 1) if _channels(vae) else 8


def decode_tiles(decode: Decode, latents: torch.Tensor, factor: int) -> torch.Tensor:
    """Pixels of latents, decoded in tiles; `factor`: pixels a latent."""
    height, width = latents.shape[-2:]
    tile, overlap = max(2, TILE // factor), max(1, OVERLAP // factor)
    pixels = torch.zeros(1, 3, height * factor, width * factor, device=latents.device)
    for top, down in spans(height, tile, overlap, factor):
        for left, across in spans(width, tile, overlap, factor):
            decoded = decode(latents[..., top : top + tile, left : left + tile].contiguous())
            weights = (down[:, None] * across).to(decoded.device)
            high, wide = weights.shape
            pixels[..., top * factor :, left * factor :][..., :high, :wide] += decoded * weights
    return pixels


def spans(length: int, tile: int, overlap: int, factor: int) -> list[Span]:
    """The tiles along a side, equally far apart, all of one size. At every pixel their weights sum to one."""
    if length <= tile:
        return [(0, torch.ones(length * factor))]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    ramp = torch.arange(tile * factor, dtype=torch.float64) + 0.5
    weight = torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap * factor)
    total = torch.zeros(length * factor, dtype=torch.float64)
    for start in starts:
        total[start * factor : (start + tile) * factor] += weight
    return [(start, (weight / total[start * factor : (start + tile) * factor]).float()) for start in starts]


def _channels(vae: Any) -> list[int]:
    """Of the decoder's blocks, from the pixels' end."""
    return list(vae.config.get("decoder_block_out_channels") or vae.config.get("block_out_channels") or ())


def _layers(vae: Any) -> int:
    """A decoder whose weights lie channels last copies less."""
    wide = [weight for weight in vae.parameters() if weight.dim() == 4 and min(weight.shape) > 1]
    last = wide and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in wide)
    return CHANNELS_LAST if last else CONTIGUOUS
