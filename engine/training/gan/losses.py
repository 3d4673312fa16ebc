"""Losses and measures of the pixel networks: the distance of two pictures.

Images are fp32 [n, 3, h, w], from −1 to 1; every function is pure. SSIM: Wang 2004, on the luma of BT.601.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
WINDOW, SIGMA = 11, 1.5


def pyramid(guess: Tensor, wanted: Tensor, weight: Tensor | None = None, levels: int = 3) -> Tensor:
    """Return the mean absolute difference at `levels` sizes, each half the last; `weight` [n, 1, h, w] a pixel."""
    difference = guess - wanted
    total = difference.new_zeros(())
    for level in range(levels):
        wrong = difference.abs()
        total = total + (wrong.mean() if weight is None else (wrong * weight).sum() / (3 * weight.sum()))
        if level + 1 < levels:
            difference = F.avg_pool2d(difference, 2)
            weight = None if weight is None else F.avg_pool2d(weight, 2)
    return total / levels


def gradient(guess: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels' steps: edges stay edges, flat areas flat."""
    difference = guess - wanted
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def overshoot(guess: Tensor, wanted: Tensor, reach: int = 4) -> Tensor:
    """Return the mean excess over the target's range within `reach` pixels: ringing costs, softness does not."""
    side = 2 * reach + 1
    highest = F.max_pool2d(wanted, side, 1, reach)
    lowest = -F.max_pool2d(-wanted, side, 1, reach)
    return (F.relu(guess - highest) + F.relu(lowest - guess)).mean()


def psnr(guess: Tensor, wanted: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return each picture's PSNR in dB [n], values clamped; inside `mask` [n, 1, h, w] if given."""
    wrong = ((guess.clamp(-1, 1) - wanted) / 2).square()
    if mask is None:
        return -10 * wrong.mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
    inside = (wrong * mask).sum(dim=(1, 2, 3)) / (3 * mask.sum(dim=(1, 2, 3))).clamp_min(1)
    return -10 * inside.clamp_min(1e-10).log10()


def ssim(guess: Tensor, wanted: Tensor) -> Tensor:
    """Return each picture's structural similarity [n], 1 for equal pictures."""
    one, other = ((image.clamp(-1, 1) + 1) / 2 for image in (guess, wanted))
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    one, other = (one * luma).sum(1, keepdim=True), (other * luma).sum(1, keepdim=True)
    place = torch.arange(WINDOW) - WINDOW // 2
    bell = torch.exp(-(place.float() ** 2) / (2 * SIGMA**2))
    bell = bell / bell.sum()
    window = (bell[:, None] * bell[None, :])[None, None]
    mean_one, mean_other = F.conv2d(one, window), F.conv2d(other, window)
    square_one = F.conv2d(one * one, window) - mean_one**2
    square_other = F.conv2d(other * other, window) - mean_other**2
    both = F.conv2d(one * other, window) - mean_one * mean_other
    first = (2 * mean_one * mean_other + 0.01**2) / (mean_one**2 + mean_other**2 + 0.01**2)
    second = (2 * both + 0.03**2) / (square_one + square_other + 0.03**2)
    return (first * second).mean(dim=(1, 2, 3))
