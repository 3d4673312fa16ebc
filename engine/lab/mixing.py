"""The arithmetic of the lab: mixing, walking, noising. Tensors in, tensors out; knows no model, no files, no words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from engine.noise import slerp


def mixed(empty: torch.Tensor, states: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """e + Σ wᵢ(sᵢ - e): a sum of texts seen from the empty text e.

    Every text's states share what says "a text begins here, and here there are no more words", and so does e. A bare
    sum would multiply that by Σ wᵢ, and the network has never seen such a text; counted from e it is always there
    exactly once, whatever the weights. Where they add up to 1, e cancels out and this is the bare sum; where there is
    no term at all, it is the empty text.
    """
    whole = empty.double()
    total = whole.clone()
    for state, weight in zip(states, weights, strict=True):
        total = total + weight * (state.double() - whole)
    return total.to(empty.dtype)


def positive(weights: Iterable[float]) -> float:
    """The sum of those above 0."""
    return math.fsum(weight for weight in weights if weight > 0)


def balanced(weights: Sequence[float], whole: float | None = None) -> tuple[float, ...]:
    """Weights in shares of `whole`; of their positive part unless it is given: guidance then keeps its strength.

    That is what the bot's `::` does. Raises ValueError where nothing is positive.
    """
    whole = positive(weights) if whole is None else whole
    if whole <= 0:
        raise ValueError("no weight is positive")
    return tuple(weight / whole for weight in weights)


def lerp(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """The straight line from `a` (share 0) to `b` (1)."""
    return (1 - share) * a + share * b


def turned(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """From `a` to `b` on an arc: the direction by `slerp`, the length on a straight line between the two lengths."""
    lengths = float(a.norm()), float(b.norm())
    if min(lengths) == 0:
        return lerp(a, b, share)
    direction = slerp(a / lengths[0], b / lengths[1], share)
    return direction * ((1 - share) * lengths[0] + share * lengths[1])


def walked(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Token states `[tokens, features]` between two texts, each token on its own arc.

    The encoder ends in a layer norm, so a token's states are about equally long (of MiniLM within a tenth); halfway
    along a straight line they would be shorter, by a sixth where one noun becomes another, and say less. An arc keeps
    their length.
    """
    return torch.stack([turned(x, y, share) for x, y in zip(a, b, strict=True)])


def noised(x0: torch.Tensor, noise: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The forward process in one leap: x = alpha·x0 + sigma·noise (Ho et al. 2020, equation 4)."""
    return alpha * x0 + sigma * noise


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in decibels; infinite where nothing differs."""
    error = float((a.double() - b.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(peak * peak / error)
