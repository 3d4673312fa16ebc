"""What comes at a step of a run: which rows, and whence all other chance. Functions of (seed, step) and nothing else.

So the position *is* the state of the random numbers: a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import numpy as np
import torch


def batch_at(seed: int, step: int, total: int, batch: int) -> np.ndarray:
    """The numbers of the rows of this step, `batch` of `total`: each comes once before any comes again."""
    epoch, place = divmod(step, total // batch)
    return np.random.default_rng([seed, epoch]).permutation(total)[place * batch : (place + 1) * batch]


def draws_at(seed: int, step: int) -> torch.Generator:
    """Noise, timesteps and whatever else a step draws."""
    return torch.Generator().manual_seed((seed << 32) + step)


def strata(count: int, chance: torch.Generator) -> torch.Tensor:
    """One number in each `count`-th of 0 … 1, in any order, [count]: every level of noise has its share of a batch."""
    return (torch.randperm(count, generator=chance) + torch.rand(count, generator=chance)) / count


def silenced(states: torch.Tensor, empty: torch.Tensor, share: float, chance: torch.Generator) -> torch.Tensor:
    """Token states [n, tokens, width], `share` of them those of the empty text: for guidance (Ho & Salimans 2021)."""
    silent = torch.rand(len(states), generator=chance) < share
    return torch.where(silent.view(-1, 1, 1), empty, states)
