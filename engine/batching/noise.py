"""The noise of one image: a function of the recipe and the position in the stream alone.

Draws are float32 on the CPU, from one sequential generator per image. So diffusers with
`generator=[torch.Generator().manual_seed(seed + i)]` gives the same picture, on any device. A variation's lineage
interpolates every draw, not only the first, so it also works with samplers that draw at each step. A restored image
redraws up to its position, so no generator state is stored.
"""

from __future__ import annotations

import functools
from typing import cast

import torch

from engine.contract import Recipe, noise_seed
from engine.sampling import Plan


class Noise:
    """Standard normal draws of shape `shape` for image `image` of `recipe`; draw 0 is the initial noise."""

    def __init__(self, recipe: Recipe, image: int, shape: tuple[int, ...]) -> None:
        ancestors = [_SeedStream(ancestor.seed + ancestor.index, shape) for ancestor in recipe.lineage]
        self._lineage_strengths = [ancestor.strength for ancestor in recipe.lineage]
        self._streams = [*ancestors, _SeedStream(noise_seed(recipe, image), shape)]

    def initial_noise(self) -> torch.Tensor:
        """Return draw 0 of the shape `shape`, float32 on the CPU."""
        return self._draw_blended(0)

    def row_noise(self, k: int, plan: Plan) -> torch.Tensor:
        """Return the noise that the plan's row at step `k` adds; call it only if `plan.has_noise_draw(k)`.

        A row of several steps adds the draws of all of them, each with its share; that is a standard normal draw, too.
        """
        positions, weights = plan.draws_at(k)
        if not weights:
            return self._draw_blended(positions[0])
        draws = (weight * self._draw_blended(position) for position, weight in zip(positions, weights, strict=True))
        return functools.reduce(torch.add, draws)

    def _draw_blended(self, position: int) -> torch.Tensor:
        """Interpolate along the generations; each strength says how far the next one moves from its predecessor."""
        noise = self._streams[0].draw(position)
        for strength, stream in zip(self._lineage_strengths, self._streams[1:], strict=True):
            noise = slerp(noise, stream.draw(position), strength)
        return noise


class _SeedStream:
    """One seed's draws in order; going back restarts the generator."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._seed = seed
        self._shape = shape
        self._next_position = 0
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, position: int) -> torch.Tensor:
        if position < self._next_position:
            self._next_position, self._generator = 0, torch.Generator().manual_seed(self._seed)
        while True:
            noise = torch.randn(self._shape, generator=self._generator)
            self._next_position += 1
            if self._next_position > position:
                return noise


def slerp(a: torch.Tensor, b: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the spherical interpolation from `a` (strength 0) to `b` (1), which keeps the noise's norm (Shoemake
    1985). Both have one shape `[…]`, which is the result's.
    """
    x = a.double().flatten()
    y = b.double().flatten()
    cos_angle = torch.dot(x, y) / cast(torch.Tensor, x.norm() * y.norm())
    angle = torch.arccos(cos_angle.clamp(-1.0, 1.0))
    if angle < 1e-4:  # equal streams: the sines vanish
        return a
    blended = (torch.sin((1 - strength) * angle) * x + torch.sin(strength * angle) * y) / torch.sin(angle)
    return blended.float().view(a.shape)
