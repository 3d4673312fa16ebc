"""A controller for the KL term's weight: it keeps the latents' noise at a target share of their signal.

A larger weight makes more noise. Its whole state is the logarithm of the weight.
"""

from __future__ import annotations

import math

ADAPTATION_RATE = 0.005  # change of the logarithm in a step, for each factor e between ratio and target
MIN_LOG_WEIGHT = math.log(1e-9)
MAX_LOG_WEIGHT = math.log(1e-1)


def adapt_log_weight(log_weight: float, ratio: float, target: float) -> float:
    """Run one step of the controller. With a `target` of 0 the weight stays."""
    if target <= 0:
        return log_weight
    log_error = math.log(target / max(ratio, 1e-12))
    return min(MAX_LOG_WEIGHT, max(MIN_LOG_WEIGHT, log_weight + ADAPTATION_RATE * min(1.0, max(-1.0, log_error))))
