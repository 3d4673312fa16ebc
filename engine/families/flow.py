"""What the models of flow matching share: how far their noise levels shift, and where the levels begin and end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers.pipelines.flux.pipeline_flux import calculate_shift


def shift(scheduler_config: Mapping[str, Any], tokens: int) -> float:
    """mu for a picture of so many image tokens: a larger picture needs more noise to be forgotten (Esser et al. 2024).

    A straight line through two points of the configuration; diffusers' own defaults where it does not say.
    """
    least, most = scheduler_config.get("base_image_seq_len", 256), scheduler_config.get("max_image_seq_len", 4096)
    lowest, highest = scheduler_config.get("base_shift", 0.5), scheduler_config.get("max_shift", 1.15)
    return float(calculate_shift(tokens, least, most, lowest, highest))


def evenly(steps: int) -> tuple[float, ...]:
    """The noise levels of `steps` steps before they are shifted: from 1 to 1/steps, evenly."""
    return tuple(np.linspace(1.0, 1.0 / steps, steps).tolist())
