"""Shared by flow-matching models: the shift of their noise levels, their range, and the plan that follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from engine.contract import Sampler
from engine.models.families.diffusers_family import DiffusersFamily
from engine.sampling import Plan, TimestepOptions, plan


def compute_mu(scheduler_config: Mapping[str, Any], tokens: int) -> float:
    """Return mu for a picture of `tokens` image tokens: larger pictures need more noise (Esser et al. 2024).

    A straight line through two points of the configuration, with diffusers' defaults.
    """
    min_tokens = scheduler_config.get("base_image_seq_len", 256)
    max_tokens = scheduler_config.get("max_image_seq_len", 4096)
    min_shift = scheduler_config.get("base_shift", 0.5)
    max_shift = scheduler_config.get("max_shift", 1.15)
    return float(cast(Any, calculate_shift)(tokens, min_tokens, max_tokens, min_shift, max_shift))


def make_even_sigmas(steps: int) -> tuple[float, ...]:
    """Return the noise levels of `steps` steps before the shift: from 1 to 1/steps, evenly."""
    return tuple(np.linspace(1.0, 1.0 / steps, steps).tolist())


class FlowMatchingFamily(DiffusersFamily):
    """A family whose noise levels are shifted for the picture's size."""

    has_even_sigmas: ClassVar[bool] = True  # its pipeline passes `make_even_sigmas`; else the scheduler makes its own

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        sigmas = make_even_sigmas(steps) if self.has_even_sigmas else None
        options = TimestepOptions(mu=self._compute_mu(width, height, steps), sigmas=sigmas)
        return plan(self.scheduler_config, sampler, steps, eta, options)

    def _compute_mu(self, width: int, height: int, steps: int) -> float:
        """Return the shift for a picture of this size in pixels; an image token covers `multiple` pixels a side."""
        return compute_mu(self.scheduler_config, width * height // self.multiple**2)
