"""A perceptual loss: the distance of two pictures in the features of a classifier.

It takes the stages of any frozen network. Zhang 2018 (LPIPS, without learnt weights). Another network must evaluate the
result, since training optimises this one's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from training.core.device import mixed_precision

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
