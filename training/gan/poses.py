"""Rotates and rescales latents, so that they keep the symmetries of pictures and stay learnable.

It works on squares of any depth. The picture gets the same transform as the latents, and the decoder must agree.
Kouzelis 2025 (EQ-VAE).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_SIDE_SHARE = 0.5  # of a side of the latents


@dataclass(frozen=True)
class Pose:
    """The `side` of the latents afterwards, `quarter_turns` of 90 degrees, and whether they are `mirrored` first."""

    side: int
    quarter_turns: int
    mirrored: bool


def draw_pose(side: int, generator: torch.Generator) -> Pose:
    """Draw a pose of latents of this side; all are equally likely."""
    min_side = max(1, round(MIN_SIDE_SHARE * side))
    extra_side, quarter_turns, mirrored = (
        int(torch.randint(count, (), generator=generator)) for count in (side - min_side + 1, 4, 2)
    )
    return Pose(min_side + extra_side, quarter_turns, bool(mirrored))


def apply_pose(pose: Pose, images: Tensor, scale: int = 1) -> Tensor:
    """Apply a pose to [n, c, side, side]; `scale` is the width of one latent position in pixels."""
    side = pose.side * scale
    if images.size(-1) != side:
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    mirrored_images = images.flip(-1) if pose.mirrored else images
    return torch.rot90(mirrored_images, pose.quarter_turns, (-2, -1))
