"""The time until each of many users sees a first preview: our engine, and one job after another."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from engine.bench.crowd import Load, call, events
from engine.engine import Stepped
from engine.families.family import Family


def together(family: Family, load: Load, share: float = 0.1) -> list[float]:
    """Return the seconds until each user sees our decoded preview at `share` of the steps (0: any), ascending."""
    begun, seen = time.perf_counter(), dict[str, float]()
    for event in events(family, load, watched=True):
        if not isinstance(event, Stepped) or event.x0 is None or event.k < load.steps * share or event.job in seen:
            continue
        family.decode(event.x0)
        seen[event.job] = time.perf_counter() - begun
        if len(seen) == load.users:
            break
    return sorted(seen.values())


def in_turn(pipeline: Any, family: Family, load: Load, share: float = 0.1) -> list[float]:
    """Return the same for the pipeline: its step callback decodes, and later users wait for whole jobs."""
    begun, seen = time.perf_counter(), list[float]()

    def look(_: Any, k: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
        if k + 1 == max(1, int(load.steps * share)):
            family.decode(state["latents"][0].float())
            seen.append(time.perf_counter() - begun)
        return state

    *before, last = load.jobs(family)
    for job in before:
        call(pipeline, job, callback_on_step_end=look)
    call(pipeline, last, callback_on_step_end=_until(look, seen, load.users))
    return sorted(seen)


def _until(look: Any, seen: list[float], users: int) -> Any:
    """Wrap the callback to stop the last job after its preview: nothing is measured after that."""

    def wrapped(pipeline: Any, k: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = look(pipeline, k, t, state)
        pipeline._interrupt = len(seen) == users
        return state

    return wrapped


def p95(values: list[float]) -> float:
    """Return the 95th percentile by linear interpolation, numpy's definition; NaN if there are no values."""
    return float(np.percentile(values, 95)) if values else math.nan
