"""The time until each of many users sees a first preview: our engine, and one job after another."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from benchmarks.engine.workload import Workload, run_engine, run_pipeline
from engine.batching.engine import StepDone
from engine.models.family import Family


def time_engine_previews(family: Family, load: Workload, step_share: float = 0.1) -> list[float]:
    """Return the seconds until each user sees our decoded preview at `step_share` of the steps (0: any), ascending."""
    started_at = time.perf_counter()
    preview_times = dict[str, float]()
    for event in run_engine(family, load, with_previews=True):
        if (
            not isinstance(event, StepDone)
            or event.x0 is None
            or event.step < load.steps * step_share
            or event.job in preview_times
        ):
            continue
        family.decode(event.x0)
        preview_times[event.job] = time.perf_counter() - started_at
        if len(preview_times) == load.users:
            break
    return sorted(preview_times.values())


def time_pipeline_previews(pipeline: Any, family: Family, load: Workload, step_share: float = 0.1) -> list[float]:
    """Return the same for the pipeline: its step callback decodes, and later users wait for whole jobs."""
    started_at = time.perf_counter()
    preview_times = list[float]()

    def record_preview(_: Any, step: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == max(1, int(load.steps * step_share)):
            family.decode(state["latents"][0].float())
            preview_times.append(time.perf_counter() - started_at)
        return state

    *earlier_jobs, last_job = load.make_jobs(family)
    for job in earlier_jobs:
        run_pipeline(pipeline, job, callback_on_step_end=record_preview)
    run_pipeline(
        pipeline, last_job, callback_on_step_end=_stop_after_preview(record_preview, preview_times, load.users)
    )
    return sorted(preview_times)


def _stop_after_preview(callback: Any, preview_times: list[float], user_count: int) -> Any:
    """Wrap the callback to stop the last job after its preview: nothing is measured after that."""

    def stopping_callback(pipeline: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = callback(pipeline, step, timestep, state)
        pipeline._interrupt = len(preview_times) == user_count
        return state

    return stopping_callback


def percentile_95(values: list[float]) -> float:
    """Return the 95th percentile by linear interpolation, numpy's definition; NaN if there are no values."""
    return float(np.percentile(values, 95)) if values else math.nan
