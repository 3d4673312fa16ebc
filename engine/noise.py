"""The noise of one image: a function of the recipe and the position in the stream alone.

Draws are float32 on the CPU, from one sequential generator per image. So diffusers with
`generator=[torch.Generator().manual_seed(seed + i)]` gives the same picture, on any device. A variation's lineage
interpolates every draw, not only the first, so it also works with samplers that draw at each step. A restored image
redraws up to its position, so no generator state is stored.
"""

from __future__ import annotations

import torch

from engine.job import Recipe, stream
from engine.plan import Plan


class Noise:
    """Standard normal draws of shape `shape` for image `image` of `recipe`; draw 0 is the initial noise."""

    def __init__(self, recipe: Recipe, image: int, shape: tuple[int, ...]) -> None:
        ancestors = [_Stream(ancestor.seed + ancestor.index, shape) for ancestor in recipe.lineage]
        self._strengths = [ancestor.strength for ancestor in recipe.lineage]
        self._streams = [*ancestors, _Stream(stream(recipe, image), shape)]

    def initial(self) -> torch.Tensor:
        return self._draw(0)

    def at(self, k: int, plan: Plan) -> torch.Tensor:
        """Return the noise that step `k` adds; call it only if `plan.draws_noise(k)`."""
        return self._draw(plan.draws[k])

    def _draw(self, position: int) -> torch.Tensor:
        """Interpolate along the generations; each strength says how far the next one moves from its predecessor."""
        drawn = self._streams[0].at(position)
        for strength, later in zip(self._strengths, self._streams[1:], strict=True):
            drawn = slerp(drawn, later.at(position), strength)
        return drawn


class _Stream:
    """One seed's draws in order; going back restarts the generator."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._seed, self._shape = seed, shape
        self._next = 0
        self._generator = torch.Generator().manual_seed(seed)

    def at(self, position: int) -> torch.Tensor:
        if position < self._next:
            self._next, self._generator = 0, torch.Generator().manual_seed(self._seed)
        while True:
            drawn = torch.randn(self._shape, generator=self._generator)
            self._next += 1
            if self._next > position:
                return drawn


def slerp(a: torch.Tensor, b: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the spherical interpolation from `a` (strength 0) to `b` (1), which keeps the noise's norm (Shoemake
    1985).
    """
    x, y = a.double().flatten(), b.double().flatten()
    cosine = torch.dot(x, y) / (x.norm() * y.norm())
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))
    if angle < 1e-4:  # equal streams: the sines vanish
        return a
    mixed = (torch.sin((1 - strength) * angle) * x + torch.sin(strength * angle) * y) / torch.sin(angle)
    return mixed.float().view(a.shape)
