"""A sampler as a table of coefficients, one row a step.

A step of the usual samplers is linear in its inputs (`probe.py` has the formula). So a diffusers scheduler becomes a
float64 table, and images with different samplers and step counts share one fused update. A sampler without a table is
refused with a sentence: `NotTabled` if an unmodified pipeline can run it, ValueError if nothing can.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from engine.contract import PIPELINE_SAMPLERS
from engine.contract.fields import SAMPLER_ROWS
from engine.sampling.probe import NotTabled, probe
from engine.sampling.samplers import (
    SAMPLERS,
    TABLED,
    TimestepError,
    TimestepOptions,
    build_scheduler,
    is_flow,
    samplers_for,
)
from engine.sampling.table import COLUMNS, Plan, compose

__all__ = [
    "COLUMNS",
    "SAMPLERS",
    "TABLED",
    "NotTabled",
    "Plan",
    "TimestepError",
    "TimestepOptions",
    "build_scheduler",
    "compose",
    "is_flow",
    "plan",
    "samplers_for",
]

NOT_TABLED_REASONS: dict[str, str] = {row.name: row.pipeline_reason for row in SAMPLER_ROWS if row.pipeline_reason}
_LOCKS_LOCK = threading.Lock()
_PROBE_ERRORS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def plan(
    scheduler_config: Mapping[str, Any],
    sampler: str,
    steps: int,
    eta: float = 0.0,
    timing: TimestepOptions = TimestepOptions(),
) -> Plan:
    """Return the table of `sampler` for a model's scheduler configuration; cached. Raises ValueError with a sentence.

    Raises `NotTabled` if the sampler fits the model and an unmodified pipeline can run it, but it is no table.
    """
    config = {name: value for name, value in scheduler_config.items() if name != "_use_default_values"}
    key = (json.dumps(config, sort_keys=True, default=str), sampler, steps, eta, timing)
    with _LOCKS_LOCK:
        lock = _lock_for(*key)
    with lock:
        return _plan(*key)


@lru_cache(maxsize=256)
def _lock_for(*_key: object) -> threading.Lock:
    """Return the lock of a table: jobs that come together wait for one probe, and for none of another table."""
    return threading.Lock()


@lru_cache(maxsize=256)
def _plan(scheduler_config: str, sampler: str, steps: int, eta: float, timing: TimestepOptions) -> Plan:
    config = json.loads(scheduler_config)
    scheduler = build_scheduler(config, sampler)
    if sampler in PIPELINE_SAMPLERS:
        raise NotTabled(NOT_TABLED_REASONS[sampler])
    if str(config.get("variance_type")).startswith("learned"):
        raise NotTabled("This model's network predicts the variance, too, which cannot be batched by step.")
    try:
        # At zero terminal SNR, DDIM with eta 1 takes the root of 1 - a - s², which is 0 ± rounding: diffusers itself
        # returns NaN there. Slightly less noise avoids it.
        table_plan = probe(scheduler, steps, eta, timing)
        table_plan = (
            probe(build_scheduler(config, sampler), steps, eta * (1 - 1e-6), timing)
            if eta and not table_plan
            else table_plan
        )
    except (NotTabled, TimestepError):
        raise
    except _PROBE_ERRORS as error:  # diffusers raises these for too many steps or a bad configuration
        raise ValueError(_too_many_steps(sampler, steps)) from error
    if table_plan is None:
        raise ValueError(_too_many_steps(sampler, steps))
    return table_plan


def _too_many_steps(sampler: str, steps: int) -> str:
    return f"The sampler {sampler} cannot take {steps} steps with this model's noise schedule."
