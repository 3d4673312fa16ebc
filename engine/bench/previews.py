"""How long each of many users waits for a first sight of their picture: ours, and one job after another."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from engine.bench.crowd import Load, call, events
from engine.engine import Stepped
from engine.families.family import Family


def together(family: Family, load: Load, share: float = 0.1) -> list[float]:
    """Seconds until each user sees the decoded preview at `share` of the steps (0: any), ours; in ascending order."""
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
    """The same for the pipeline: its step callback decodes there, and whoever comes later waits for whole jobs."""
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
    """Nothing is measured after the last one's preview, so the rest of that job is not waited for."""

    def wrapped(pipeline: Any, k: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = look(pipeline, k, t, state)
        pipeline._interrupt = len(seen) == users
        return state

    return wrapped


def p95(values: list[float]) -> float:
    """The 95th percentile by linear interpolation, as numpy defines it; NaN of none."""
    return float(np.percentile(values, 95)) if values else math.nan
