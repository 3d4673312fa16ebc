"""Losses and measures of the pixel networks: the distance of two pictures.

Images are fp32 [n, 3, h, w], from −1 to 1. SSIM: Wang 2004, on the luma of BT.601. The perceptual loss is Zhang 2018
(LPIPS, without learnt weights), on the stages of any frozen network. Another network must evaluate the result, since
training optimises this one's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.core.learner import mixed_precision

LUMA = (0.299, 0.587, 0.114)
WINDOW = 11
SIGMA = 1.5


def pyramid_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None, levels: int = 3) -> Tensor:
    """Return the mean absolute difference at `levels` sizes, each half the last; `weight` [n, 1, h, w] a pixel."""
    difference = prediction - target
    total = difference.new_zeros(())
    for level in range(levels):
        error = difference.abs()
        total = total + (error.mean() if weight is None else (error * weight).sum() / (3 * weight.sum()))
        if level + 1 < levels:
            difference = F.avg_pool2d(difference, 2)
            weight = None if weight is None else F.avg_pool2d(weight, 2)
    return total / levels


def gradient_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference between the pictures' gradients: edges stay edges, flat areas flat."""
    difference = prediction - target
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def sharpness_loss(prediction: Tensor, target: Tensor, side: int = 8) -> Tensor:
    """Return the mean absolute difference of the gradients' root mean square in areas of `side` pixels.

    Blur costs, an edge that is a little off does not.
    """
    return (_area_gradient(prediction, side) - _area_gradient(target, side)).abs().mean()


def overshoot_loss(prediction: Tensor, target: Tensor, reach: int = 4) -> Tensor:
    """Return the mean excess over the target's range within `reach` pixels: ringing costs, softness does not."""
    side = 2 * reach + 1
    highest = F.max_pool2d(target, side, 1, reach)
    lowest = -F.max_pool2d(-target, side, 1, reach)
    return (F.relu(prediction - highest) + F.relu(lowest - prediction)).mean()


def gradient_energy(images: Tensor) -> float:
    """Return the mean squared difference of luma (0 … 255) between neighbours: half sideways, half downwards."""
    luma = 127.5 * _to_luma(images)
    return float(luma.diff(dim=-1).square().mean() + luma.diff(dim=-2).square().mean()) / 2


def psnr(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return each picture's PSNR in dB [n], values clamped; inside `mask` [n, 1, h, w] if given."""
    squared_error = ((prediction.clamp(-1, 1) - target) / 2).square()
    if mask is None:
        return -10 * squared_error.mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
    masked_error = (squared_error * mask).sum(dim=(1, 2, 3)) / (3 * mask.sum(dim=(1, 2, 3))).clamp_min(1)
    return -10 * masked_error.clamp_min(1e-10).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Return each picture's structural similarity [n], 1 for equal pictures."""
    prediction_luma, target_luma = (_to_luma((image.clamp(-1, 1) + 1) / 2) for image in (prediction, target))
    offsets = torch.arange(WINDOW, device=prediction.device) - WINDOW // 2
    kernel = torch.exp(-(offsets.float() ** 2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    window = (kernel[:, None] * kernel[None, :])[None, None]
    prediction_mean = F.conv2d(prediction_luma, window)
    target_mean = F.conv2d(target_luma, window)
    prediction_variance = F.conv2d(prediction_luma * prediction_luma, window) - prediction_mean**2
    target_variance = F.conv2d(target_luma * target_luma, window) - target_mean**2
    covariance = F.conv2d(prediction_luma * target_luma, window) - prediction_mean * target_mean
    luminance_term = (2 * prediction_mean * target_mean + 0.01**2) / (prediction_mean**2 + target_mean**2 + 0.01**2)
    contrast_term = (2 * covariance + 0.03**2) / (prediction_variance + target_variance + 0.03**2)
    return (luminance_term * contrast_term).mean(dim=(1, 2, 3))


def _area_gradient(images: Tensor, side: int) -> Tensor:
    energy = images.diff(dim=-1)[..., :-1, :].square() + images.diff(dim=-2)[..., :-1].square()
    return (F.avg_pool2d(energy, side, ceil_mode=True) + 1e-5).sqrt()  # the root has no gradient at 0


def _to_luma(images: Tensor) -> Tensor:
    """Weigh the channels: [n, 3, h, w] → [n, 1, h, w]."""
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


MAX_OFFSET = 4  # pixels: the first layer's stride; without jitter its positions would show as a grid


class PerceptualLoss:
    """Compares the outputs of consecutive `stages`."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        self.stages = [stage.eval().requires_grad_(False) for stage in stages]

    def distance(self, prediction: Tensor, target: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Return the mean squared difference of the features, each of length 1; `offset` pixels are cut off first."""
        top, left = offset
        with mixed_precision(prediction.device):
            features = prediction[..., top:, left:]
            target_features = target[..., top:, left:]
            total = prediction.new_zeros(())
            for stage in self.stages:
                features = stage(features)
                with torch.no_grad():
                    target_features = stage(target_features)
                total = total + (_normalise(features) - _normalise(target_features)).square().sum(1).mean()
        return total / len(self.stages)


def draw_offset(generator: torch.Generator) -> tuple[int, int]:
    """Draw a step's offset in pixels."""
    top, left = cast(list[int], torch.randint(MAX_OFFSET, (2,), generator=generator).tolist())
    return top, left


def _normalise(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=1, eps=1e-4)
