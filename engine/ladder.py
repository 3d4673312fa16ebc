"""Chooses the steps of a plan that become keyframes, evenly spaced in visible change. Pure."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from engine.job import MAX_RUNGS
from engine.plan import COLUMNS, Plan

LATENT_EVERY = 4  # every fourth keyframe keeps its latents, to branch or replay from
_SEEN = 8.0  # beyond |log-SNR| 8 nothing visible changes; it is infinite at zero terminal SNR


def rungs(plan: Plan, first: int = 0, last: int | None = None) -> tuple[int, ...]:
    """Return the keyframes as steps done (`first` + 1…`last`): at most `MAX_RUNGS`, evenly in log-SNR, the last
    included.
    """
    levels = plan.table[first:last, [COLUMNS.index("alpha"), COLUMNS.index("sigma")]]
    return tuple(first + step for step in _rungs(levels.tobytes()))


@lru_cache(maxsize=256)
def _rungs(levels: bytes) -> tuple[int, ...]:
    alpha, sigma = np.frombuffer(levels, dtype=np.float64).reshape(-1, 2).T
    if len(alpha) <= MAX_RUNGS:
        return tuple(range(1, len(alpha) + 1))
    with np.errstate(divide="ignore"):
        log_snr = np.clip(2 * (np.log(alpha) - np.log(sigma)), -_SEEN, _SEEN)
    targets = log_snr[0] + (log_snr[-1] - log_snr[0]) * np.arange(MAX_RUNGS) / (MAX_RUNGS - 1)
    nearest = np.abs(log_snr[None, :] - targets[:, None]).argmin(axis=1)
    return tuple(sorted({int(step) + 1 for step in nearest} | {len(alpha)}))[-MAX_RUNGS:]


def keeps_latent(rung: int) -> bool:
    """Return whether keyframe number `rung` (from 0) stores latents and history besides its thumbnail."""
    return rung % LATENT_EVERY == LATENT_EVERY - 1
