"""All randomness of a training step: batch, noise, timesteps. Each is a function of (seed, step) alone.

So the position of a run is also the state of its random numbers: a killed run continues exactly.
"""

from __future__ import annotations

import numpy as np
import torch


def batch_indices(seed: int, step: int, total: int, batch_size: int) -> np.ndarray:
    """Return the row numbers of this step, `batch_size` of `total`: each row comes once an epoch."""
    epoch, batch_number = divmod(step, total // batch_size)
    return np.random.default_rng([seed, epoch]).permutation(total)[
        batch_number * batch_size : (batch_number + 1) * batch_size
    ]


def weighted_indices(seed: int, step: int, shares: np.ndarray, batch_size: int) -> np.ndarray:
    """Return different row numbers for this step, each drawn with its probability in `shares` [n]."""
    return np.random.default_rng([seed, step]).choice(len(shares), batch_size, replace=False, p=shares)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator for noise, timesteps and all else that a step draws."""
    return torch.Generator().manual_seed((seed << 32) + step)


def stratified_uniforms(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return one number in each `count`-th of 0 … 1, shuffled, [count]: a batch then covers all noise levels evenly."""
    return (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count


def drop_conditioning(
    states: torch.Tensor, empty: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Replace a `share` of token states [n, tokens, width] by the empty text's, for guidance (Ho & Salimans 2021)."""
    drop_mask = torch.rand(len(states), generator=generator) < share
    return torch.where(drop_mask.view(-1, 1, 1), empty, states)
