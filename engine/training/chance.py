"""All randomness of a training step: batch, noise, timesteps. Each is a function of (seed, step) alone.

So the position of a run is also the state of its random numbers: a killed run continues exactly.
"""

from __future__ import annotations

import numpy as np
import torch


def batch_at(seed: int, step: int, total: int, batch: int) -> np.ndarray:
    """Return the row numbers of this step, `batch` of `total`: each row comes once an epoch."""
    epoch, place = divmod(step, total // batch)
    return np.random.default_rng([seed, epoch]).permutation(total)[place * batch : (place + 1) * batch]


def draws_at(seed: int, step: int) -> torch.Generator:
    """Return the generator for noise, timesteps and all else that a step draws."""
    return torch.Generator().manual_seed((seed << 32) + step)


def strata(count: int, chance: torch.Generator) -> torch.Tensor:
    """Return one number in each `count`-th of 0 … 1, shuffled, [count]: a batch then covers all noise levels evenly."""
    return (torch.randperm(count, generator=chance) + torch.rand(count, generator=chance)) / count


def silenced(states: torch.Tensor, empty: torch.Tensor, share: float, chance: torch.Generator) -> torch.Tensor:
    """Replace a `share` of token states [n, tokens, width] by the empty text's, for guidance (Ho & Salimans 2021)."""
    silent = torch.rand(len(states), generator=chance) < share
    return torch.where(silent.view(-1, 1, 1), empty, states)
