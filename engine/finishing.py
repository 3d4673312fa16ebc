"""Postprocessing: decodes tiles without a seam, and composites masked edits over the init image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image, ImageFilter, ImageOps

from engine.beginning import HALF, Beginning

AROUND = 4  # latents of the opposite edge around a tile
FEATHER = 1 / 256  # of the shorter side: four pixels of 1024, as A1111's mask blur


def developed(make: Callable[[torch.Tensor], Image.Image], latents: torch.Tensor, tile: bool) -> Image.Image:
    """Return `make(latents)` for latents `[channels, height, width]`.

    A tile is decoded with its own opposite edges around it, which are then cut off.
    """
    if not tile:
        return make(latents)
    height, width = latents.shape[-2:]
    around = min(AROUND, height, width)
    whole = make(torch.nn.functional.pad(latents[None], (around,) * 4, mode="circular")[0])
    across, down = whole.width // (width + 2 * around), whole.height // (height + 2 * around)
    return whole.crop((around * across, around * down, (around + width) * across, (around + height) * down))


def laid_over(picture: Image.Image, beginning: Beginning | None) -> Image.Image:
    """Composite `picture` inside the mask over the init image outside it, pixel for pixel, with a soft edge."""
    if beginning is None or beginning.picture is None or beginning.painted is None:
        return picture
    under = ImageOps.fit(beginning.picture, picture.size, Image.Resampling.LANCZOS)
    painted = ImageOps.fit(beginning.painted, picture.size, Image.Resampling.LANCZOS)
    hard = painted.point([0 if level < HALF else 255 for level in range(256)])
    soft = hard.filter(ImageFilter.GaussianBlur(max(1.0, FEATHER * min(picture.size))))
    return Image.composite(picture, under, soft)
