"""Rotates and rescales latents, so that they keep the symmetries of pictures and stay learnable.

Knows squares of any depth; knows nothing of networks. The picture gets the same transform as the latents, and the
decoder must agree. Kouzelis 2025 (EQ-VAE).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 0.5  # of a side of the latents


@dataclass(frozen=True)
class Pose:
    """The `side` of the latents afterwards, `turns` of 90 degrees, and whether they are `mirrored` first."""

    side: int
    turns: int
    mirrored: bool


def draw_pose(side: int, chance: torch.Generator) -> Pose:
    """Draw a pose of latents of this side; all are equally likely."""
    lowest = max(1, round(SMALLEST * side))
    size, turns, mirrored = (int(torch.randint(count, (), generator=chance)) for count in (side - lowest + 1, 4, 2))
    return Pose(lowest + size, turns, bool(mirrored))


def apply_pose(pose: Pose, squares: Tensor, scale: int = 1) -> Tensor:
    """Apply a pose to [n, c, side, side]; `scale` is the width of one latent position in pixels."""
    side = pose.side * scale
    if squares.size(-1) != side:
        squares = F.interpolate(squares, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    mirrored = squares.flip(-1) if pose.mirrored else squares
    return torch.rot90(mirrored, pose.turns, (-2, -1))
