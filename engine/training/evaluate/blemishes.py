"""Random augmentation of the judge's training pictures: shifts, rotations, brightness, blur, noise.

It makes the judge tolerate a decoder's errors and still recognise the drawing. Knows pixels and randomness only; the
pictures never pass through a network of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT, TURN, STRETCH = 0.12, 0.15, 0.2  # shares of half a side; radians; share of the size
SIDES = (44, 32, 24)  # a third of the pictures is blurred, to one of these sides


def blemished(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Augment fp32 [n, 3, h, w] in -1 … 1; a function of the pictures and the generator's state."""
    moved = _moved(pictures, chance)
    lit = _lit(moved, chance)
    parts = list(lit.chunk(3 * len(SIDES)))
    for place, side in enumerate(SIDES):
        if place < len(parts):
            parts[place] = _blurred(parts[place], side)
    soft = torch.cat(parts)
    loud = torch.rand((len(soft), 1, 1, 1), generator=chance).sub(0.7).clamp_(min=0.0).mul_(0.2)
    return (soft + loud * torch.randn(soft.shape, generator=chance)).clamp_(-1.0, 1.0)


def _moved(pictures: Tensor, chance: torch.Generator) -> Tensor:
    def even(reach: float) -> Tensor:
        return (torch.rand(len(pictures), generator=chance) * 2 - 1) * reach

    turn, size = even(TURN), 1 + even(STRETCH)
    cos, sin = turn.cos() * size, turn.sin() * size
    rows = torch.stack([torch.stack([cos, -sin, even(SHIFT)], 1), torch.stack([sin, cos, even(SHIFT)], 1)], 1)
    grid = F.affine_grid(rows, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _lit(pictures: Tensor, chance: torch.Generator) -> Tensor:
    many = len(pictures)
    contrast = 0.8 + 0.4 * torch.rand((many, 1, 1, 1), generator=chance)
    tint = 0.94 + 0.12 * torch.rand((many, 3, 1, 1), generator=chance)
    light = 0.3 * torch.rand((many, 1, 1, 1), generator=chance) - 0.15
    return pictures * contrast * tint + light


def _blurred(pictures: Tensor, side: int) -> Tensor:
    small = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=pictures.shape[-2:], mode="bicubic", align_corners=False)
