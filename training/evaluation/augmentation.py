"""Random augmentation of the judge's training pictures: shifts, rotations, brightness, blur, noise.

It makes the judge tolerate a decoder's errors and still recognise the drawing. The pictures never pass through a
network of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# shares of half a side; radians; share of the size
MAX_SHIFT = 0.12
MAX_ROTATION = 0.15
MAX_STRETCH = 0.2
BLUR_SIDES = (44, 32, 24)  # a third of the pictures is blurred, to one of these sides


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Augment fp32 [n, 3, h, w] in -1 … 1; a function of the pictures and the state of the processor's generator."""
    transformed_pictures = _transform_geometry(pictures, generator)
    lit_pictures = _vary_brightness(transformed_pictures, generator)
    parts = list(lit_pictures.chunk(3 * len(BLUR_SIDES)))
    for index, side in enumerate(BLUR_SIDES):
        if index < len(parts):
            parts[index] = _blur(parts[index], side)
    blurred_pictures = torch.cat(parts)
    noise_level = torch.rand((len(blurred_pictures), 1, 1, 1), generator=generator).sub(0.7).clamp_(min=0.0).mul_(0.2)
    noise = noise_level * torch.randn(blurred_pictures.shape, generator=generator)
    return (blurred_pictures + noise.to(pictures.device)).clamp_(-1.0, 1.0)


def _transform_geometry(pictures: Tensor, generator: torch.Generator) -> Tensor:
    def draw_uniform(limit: float) -> Tensor:
        return (torch.rand(len(pictures), generator=generator) * 2 - 1) * limit

    angle = draw_uniform(MAX_ROTATION)
    scale = 1 + draw_uniform(MAX_STRETCH)
    cos = angle.cos() * scale
    sin = angle.sin() * scale
    matrices = torch.stack(
        [torch.stack([cos, -sin, draw_uniform(MAX_SHIFT)], 1), torch.stack([sin, cos, draw_uniform(MAX_SHIFT)], 1)], 1
    )
    grid = F.affine_grid(matrices.to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _vary_brightness(pictures: Tensor, generator: torch.Generator) -> Tensor:
    count = len(pictures)
    contrast = 0.8 + 0.4 * torch.rand((count, 1, 1, 1), generator=generator)
    tint = 0.94 + 0.12 * torch.rand((count, 3, 1, 1), generator=generator)
    brightness = 0.3 * torch.rand((count, 1, 1, 1), generator=generator) - 0.15
    contrast, tint, brightness = (draws.to(pictures.device) for draws in (contrast, tint, brightness))
    return pictures * contrast * tint + brightness


def _blur(pictures: Tensor, side: int) -> Tensor:
    small_pictures = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small_pictures, size=pictures.shape[-2:], mode="bicubic", align_corners=False)
