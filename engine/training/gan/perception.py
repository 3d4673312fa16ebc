"""A perceptual loss: the distance of two pictures in the features of a classifier.

Knows the stages of a frozen network; knows nothing of its training. Zhang 2018 (LPIPS, without learnt weights). Another
network must evaluate the result, since training optimises this one's features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

JITTER = 4  # pixels: the first layer's stride; without jitter its positions would show as a grid


class Perception:
    """Compares the outputs of consecutive `stages`."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        self.stages = [stage.eval().requires_grad_(False) for stage in stages]

    def distance(self, guess: Tensor, wanted: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Return the mean squared difference of the features, each of length 1; `offset` pixels are cut off first."""
        top, left = offset
        with torch.autocast("cpu", torch.bfloat16):
            seen, real = guess[..., top:, left:], wanted[..., top:, left:]
            total = guess.new_zeros(())
            for stage in self.stages:
                seen = stage(seen)
                with torch.no_grad():
                    real = stage(real)
                total = total + (_unit(seen) - _unit(real)).square().sum(1).mean()
        return total / len(self.stages)


def draw_offset(chance: torch.Generator) -> tuple[int, int]:
    """Draw a step's offset in pixels."""
    top, left = torch.randint(JITTER, (2,), generator=chance).tolist()
    return top, left


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=1, eps=1e-4)
