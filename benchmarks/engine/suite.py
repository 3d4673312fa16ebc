"""The engine rows of `darkroom bench`: each goal is measured beside diffusers in the same run.

`quick` measures the README's first claims in a few minutes; all rows take about twenty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engine import step_overhead, throughput, workload
from benchmarks.engine.evaluations import measure_brief_rows
from benchmarks.engine.parity import measure_parity_rows
from benchmarks.engine.resumption import measure_resume_rows
from benchmarks.engine.throughput import measure_forward_rows
from benchmarks.engine.workload import USERS, Workload, cast_pipeline
from benchmarks.report.figure_row import FigureRow, print_progress
from engine.calibration.calibration import Calibration, calibrate
from engine.models.families.embedded import build_pipeline, load_embedded
from engine.models.family import Family

STEPS = 50  # throughput: enough for steps to dominate the time, few enough for three rounds
OVERHEAD_STEPS = 200  # for the time of a step outside the network
# previews: our advantage grows with the jobs' length
PREVIEW_STEPS = 1000
QUICK_PREVIEW_STEPS = 200


@dataclass(frozen=True)
class ComparedModels:
    """The embedded model twice: our calibrated family, and the diffusers pipeline in float32, its default."""

    family: Family
    pipeline: Any
    calibration: Calibration

    @property
    def load(self) -> Workload:
        """Return the load with the number format and batch limit that a worker would use here."""
        return Workload(STEPS, self.calibration.dtype, batch_limit=self.calibration.rows)


def load_models(data_folder: Path) -> ComparedModels:
    family = load_embedded()
    return ComparedModels(family, build_pipeline(), calibrate(family, data_folder / "calibration.json"))


def measure_quick_rows(models: ComparedModels) -> Iterator[FigureRow]:
    """Yield the rows of the README's first claims."""
    family = models.family
    pipeline = models.pipeline
    load = models.load
    yield from _measure_default_rows(models)
    print_progress("time to the preview at a tenth")
    yield compare_preview_times(pipeline, family, replace(load, steps=QUICK_PREVIEW_STEPS), "≥ 15")
    print_progress(f"throughput against diffusers in {load.dtype}, and the network alone")
    yield throughput.compare_equal_dtype(pipeline, family, load, "≥ 0.95")


def measure_all_rows(models: ComparedModels) -> Iterator[FigureRow]:
    """Yield every row for the embedded model, ordered so that the diffusers pipeline is cast only once."""
    family = models.family
    pipeline = models.pipeline
    load = models.load
    yield from _measure_default_rows(models)
    print_progress(f"time to the preview at a tenth of {PREVIEW_STEPS} steps: diffusers takes minutes")
    yield compare_preview_times(pipeline, family, replace(load, steps=PREVIEW_STEPS), "≥ 25")
    yield measure_first_preview(family, replace(load, steps=PREVIEW_STEPS))
    print_progress(f"throughput against diffusers in {load.dtype}, and the network alone")
    yield throughput.compare_equal_dtype(pipeline, family, load, "≥ 0.95")
    yield throughput.compare_four_pictures(pipeline, family, load)
    print_progress("guidance interval, mixed load, init images")
    yield throughput.compare_guidance_interval(family, load)
    yield throughput.compare_mixed_load(family, load)
    yield throughput.compare_init_images(family, load)
    print_progress("time of a step outside the network")
    yield from measure_forward_rows(family, load.dtype)
    yield step_overhead.measure_step_overhead(family, replace(load, steps=OVERHEAD_STEPS))
    yield step_overhead.measure_preview_overhead(family, load)
    yield step_overhead.measure_cancel_delay(family, load)
    yield step_overhead.measure_flood_slowdown(family, replace(load, count=4), models.calibration.bucket_ms)
    yield step_overhead.measure_flood_slowdown(family, load, models.calibration.bucket_ms)
    print_progress("killed and resumed")
    yield from measure_resume_rows(family, load)
    print_progress("few evaluations of many steps")
    yield from measure_brief_rows(family, load.dtype, load.batch_limit)
    print_progress("against diffusers compiled")
    yield throughput.compare_compiled(cast_pipeline(pipeline, load.dtype), family, load)


def _measure_default_rows(models: ComparedModels) -> Iterator[FigureRow]:
    """Yield the rows that need the diffusers pipeline in float32, its default."""
    load = models.load
    print_progress(f"embedded model, {USERS} users, ours in {load.dtype}, at most {load.batch_limit} rows a forward")
    yield from measure_parity_rows(models.pipeline, models.family)
    print_progress("throughput against diffusers as it runs by default")
    yield throughput.compare_default(models.pipeline, models.family, models.load, "≥ 4")


def compare_preview_times(pipeline: Any, family: Family, load: Workload, goal: str) -> FigureRow:
    """Compare the p95 time at which users see the preview at a tenth of the steps: diffusers' by ours."""
    diffusers_times = workload.time_pipeline_previews(pipeline, family, load)
    engine_times = workload.time_engine_previews(family, load)
    diffusers_p95, engine_p95 = workload.percentile_95(diffusers_times), workload.percentile_95(engine_times)
    name = f"p95 time to the 10 % preview of {load.steps} steps, sooner than diffusers by default"
    note = f"{engine_p95:.2f} s instead of {diffusers_p95:.1f}"
    samples = min(len(diffusers_times), len(engine_times))
    return FigureRow(name, diffusers_p95 / engine_p95, goal, "×", note, samples, load.users)


def measure_first_preview(family: Family, load: Workload) -> FigureRow:
    times = workload.time_engine_previews(family, load, step_share=0.0)
    name = f"p95 time to any preview, {load.users} users"
    return FigureRow(name, workload.percentile_95(times), "≤ 0.5", "s", samples=len(times), planned=load.users)
