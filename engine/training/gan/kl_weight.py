"""The weight of the KL term, moved so that the latents' noise stays at a wanted share of their signal.

A larger weight makes more noise. Knows numbers only; the logarithm of the weight is all of its state.
"""

from __future__ import annotations

import math

SPEED = 0.005  # of the logarithm, for each step and each e-fold that the ratio is off
LOWEST, HIGHEST = math.log(1e-9), math.log(1e-1)


def adapt_log_weight(log_weight: float, ratio: float, target: float) -> float:
    """One step of the controller. At a `target` of 0 the weight stays what it is."""
    if target <= 0:
        return log_weight
    off = math.log(target / max(ratio, 1e-12))
    return min(HIGHEST, max(LOWEST, log_weight + SPEED * min(1.0, max(-1.0, off))))
