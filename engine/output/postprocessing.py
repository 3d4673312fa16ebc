"""Postprocessing: decodes tiles without a seam, and composites masked edits over the init image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image, ImageFilter, ImageOps

from engine.batching.init_latents import MASK_THRESHOLD, InitLatents

TILE_MARGIN = 4  # latents of the opposite edge around a tile
FEATHER_SHARE = 1 / 256  # of the shorter side: four pixels of 1024, as A1111's mask blur


def decode_tiled(decode: Callable[[torch.Tensor], Image.Image], latents: torch.Tensor, tile: bool) -> Image.Image:
    """Return `decode(latents)` for latents `[channels, height, width]`.

    A tile is decoded with its own opposite edges around it, which are then cut off.
    """
    if not tile:
        return decode(latents)
    height, width = latents.shape[-2:]
    margin = min(TILE_MARGIN, height, width)
    padded = decode(torch.nn.functional.pad(latents[None], (margin,) * 4, mode="circular")[0])
    scale_x = padded.width // (width + 2 * margin)
    scale_y = padded.height // (height + 2 * margin)
    return padded.crop((margin * scale_x, margin * scale_y, (margin + width) * scale_x, (margin + height) * scale_y))


def composite(picture: Image.Image, init_latents: InitLatents | None) -> Image.Image:
    """Composite `picture` inside the mask over the init image outside it, pixel for pixel, with a soft edge."""
    if init_latents is None or init_latents.init_image is None or init_latents.mask_image is None:
        return picture
    background = ImageOps.fit(init_latents.init_image, picture.size, Image.Resampling.LANCZOS)
    mask = ImageOps.fit(init_latents.mask_image, picture.size, Image.Resampling.LANCZOS)
    hard_mask = mask.point([0 if level < MASK_THRESHOLD else 255 for level in range(256)])
    soft_mask = hard_mask.filter(ImageFilter.GaussianBlur(max(1.0, FEATHER_SHARE * min(picture.size))))
    return Image.composite(picture, background, soft_mask)
