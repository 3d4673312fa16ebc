"""Tensor arithmetic: mixing, interpolation, noising. No model, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch

from engine.batching.model_inputs import slerp


def mix_states(empty: torch.Tensor, states: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return e + Σ wᵢ(sᵢ - e): a sum of texts relative to the empty text e.

    All states share the part that marks a text's begin and its padding, and e has it too. A plain sum would multiply
    that part by Σ wᵢ, and the network has never seen such a text. Relative to e that part is always there exactly once,
    for any weights. If the weights add up to 1, e cancels out and this is the plain sum; without terms it is the empty
    text.
    """
    base = empty.double()
    total = base.clone()
    for state, weight in zip(states, weights, strict=True):
        total = total + weight * (state.double() - base)
    return total.to(empty.dtype)


def positive_sum(weights: Iterable[float]) -> float:
    """Return the sum of the positive weights."""
    return math.fsum(weight for weight in weights if weight > 0)


def balance_weights(weights: Sequence[float], total: float | None = None) -> tuple[float, ...]:
    """Divide the weights by `total`, by default by their positive sum: guidance then keeps its strength.

    The bot's `::` does the same. Raises ValueError if no weight is positive.
    """
    total = positive_sum(weights) if total is None else total
    if total <= 0:
        raise ValueError("no weight is positive")
    return tuple(weight / total for weight in weights)


def lerp(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate linearly from `a` (share 0) to `b` (1)."""
    return (1 - share) * a + share * b


def interpolate_on_arc(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate on an arc: the direction by `slerp`, the length linearly between the two lengths."""
    lengths = float(cast(torch.Tensor, a.norm())), float(cast(torch.Tensor, b.norm()))
    if min(lengths) == 0:
        return lerp(a, b, share)
    direction = slerp(a / lengths[0], b / lengths[1], share)
    return direction * ((1 - share) * lengths[0] + share * lengths[1])


def interpolate_states(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate token states `[tokens, features]` of two texts, each token on its own arc.

    The encoder ends in a layer norm, so a token's states are about equally long (of MiniLM within a tenth). Halfway
    along a straight line they would be shorter, by a sixth where one noun becomes another, and carry less. An arc keeps
    their length.
    """
    return torch.stack([interpolate_on_arc(x, y, share) for x, y in zip(a, b, strict=True)])


def add_noise(x0: torch.Tensor, noise: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """Apply the forward process in one step: x = alpha·x0 + sigma·noise (Ho et al. 2020, equation 4)."""
    return alpha * x0 + sigma * noise


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in decibels; infinite for equal tensors."""
    error = float((a.double() - b.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(peak * peak / error)
