"""Chooses the steps of a plan that become keyframes, evenly spaced in visible change. Pure."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from engine.contract import MAX_KEYFRAMES
from engine.sampling import COLUMNS, Plan

LATENTS_EVERY = 4  # every fourth keyframe keeps its latents, to branch or replay from
_MAX_LOG_SNR = 8.0  # beyond |log-SNR| 8 nothing visible changes; it is infinite at zero terminal SNR


def keyframe_steps(plan: Plan, first_step: int = 0, end_step: int | None = None) -> tuple[int, ...]:
    """Return the keyframes as numbers of steps done, each at the end of a row, the last at `end_step`.

    They are at most `MAX_KEYFRAMES`, evenly spaced in log-SNR, and include the last step.
    """
    first_row = plan.row_at(first_step)
    end_row = len(plan.table) if end_step is None else plan.row_at(end_step)
    noise_levels = plan.table[first_row:end_row, [COLUMNS.index("alpha"), COLUMNS.index("sigma")]]
    return tuple(plan.row_steps[first_row + rows] for rows in _choose_rows(noise_levels.tobytes()))


@lru_cache(maxsize=256)
def _choose_rows(noise_levels: bytes) -> tuple[int, ...]:
    alpha, sigma = np.frombuffer(noise_levels, dtype=np.float64).reshape(-1, 2).T
    if len(alpha) <= MAX_KEYFRAMES:
        return tuple(range(1, len(alpha) + 1))
    with np.errstate(divide="ignore"):
        log_snr = np.clip(2 * (np.log(alpha) - np.log(sigma)), -_MAX_LOG_SNR, _MAX_LOG_SNR)
    targets = log_snr[0] + (log_snr[-1] - log_snr[0]) * np.arange(MAX_KEYFRAMES) / (MAX_KEYFRAMES - 1)
    nearest = np.abs(log_snr[None, :] - targets[:, None]).argmin(axis=1)
    return tuple(sorted({int(step) + 1 for step in nearest} | {len(alpha)}))[-MAX_KEYFRAMES:]


def has_latents(number: int) -> bool:
    """Return whether keyframe `number` (from 0) stores latents and history besides its thumbnail."""
    return number % LATENTS_EVERY == LATENTS_EVERY - 1
