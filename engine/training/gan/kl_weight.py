"""A controller for the KL term's weight: it keeps the latents' noise at a wanted share of their signal.

A larger weight makes more noise. Knows numbers only; its whole state is the logarithm of the weight.
"""

from __future__ import annotations

import math

SPEED = 0.005  # change of the logarithm in a step, for each factor e between ratio and target
LOWEST, HIGHEST = math.log(1e-9), math.log(1e-1)


def adapt_log_weight(log_weight: float, ratio: float, target: float) -> float:
    """Run one step of the controller. With a `target` of 0 the weight stays."""
    if target <= 0:
        return log_weight
    off = math.log(target / max(ratio, 1e-12))
    return min(HIGHEST, max(LOWEST, log_weight + SPEED * min(1.0, max(-1.0, off))))
