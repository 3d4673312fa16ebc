"""Pictures a second beside diffusers: default, our number format, compiled; mixed loads; the guidance interval.

Every figure is the median of several rounds; in each round both sides run one after the other.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.engine import network_speed, workload
from benchmarks.engine.workload import USERS, Workload
from benchmarks.report.figure_row import FigureRow
from engine.contract import Recipe, count_row_steps
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import Family

log = logging.getLogger(__name__)

ROUNDS = 3
DEFAULT_ROUNDS = 7  # against diffusers by default: single rounds vary by a tenth
PrintProgress = Callable[[str], None]


def measure_speedup(pipeline: Any, family: Family, load: Workload, rounds: int | None = None) -> float:
    """Return our pictures a second divided by the pipeline's."""
    _warm_up(pipeline, family, load)
    return median(_measure_round(pipeline, family, load) for _ in range(rounds or ROUNDS))


def _measure_round(pipeline: Any, family: Family, load: Workload) -> float:
    """Run one round. The pipeline encodes each job's prompt anew, so our cache is emptied."""
    if isinstance(family, DiffusersFamily):
        family.text_cache.clear()
    return workload.time_diffusers(pipeline, family, load) / workload.time_engine(family, load)


def compare_default(pipeline: Any, family: Family, load: Workload, goal: str) -> FigureRow:
    """Compare with `pipeline` in float32, as diffusers loads it."""
    name = f"{load.users} users × {load.count} picture: images/s against diffusers by default"
    return FigureRow(name, measure_speedup(pipeline, family, load, DEFAULT_ROUNDS), goal, "×")


def compare_equal_dtype(pipeline: Any, family: Family, load: Workload, goal: str) -> FigureRow:
    """Divide our gain over the pipeline in our number format by the bare network's gain from sixteen rows at once."""
    workload.cast_pipeline(pipeline, load.dtype)
    _warm_up(pipeline, family, load)
    rounds = [
        (_measure_round(pipeline, family, load), network_speed.measure_batch_speedup(family, load.dtype))
        for _ in range(ROUNDS)
    ]
    engine_speedup, network_speedup = (median(round_values) for round_values in zip(*rounds, strict=True))
    note = f"{engine_speedup:.2f} × faster where the bare network gains {network_speedup:.2f} ×"
    return FigureRow(
        "the same in equal dtype, as a share of the bare network's batch gain",
        engine_speedup / network_speedup,
        goal,
        "",
        note,
    )


def compare_four_pictures(pipeline: Any, family: Family, load: Workload) -> FigureRow:
    """Compare jobs of four pictures, which the pipeline batches itself; both in our number format."""
    workload.cast_pipeline(pipeline, load.dtype)
    four_picture_load = replace(load, count=4)
    return FigureRow(
        f"{USERS} users × 4 pictures: images/s, equal dtype",
        measure_speedup(pipeline, family, four_picture_load),
        "≥ 1.15",
        "×",
    )


def compare_compiled(pipeline: Any, family: Family, load: Workload) -> FigureRow:
    """Compare with the pipeline's network compiled by torch, in our number format. Compile time is not counted."""
    name = f"{USERS} users × 1 picture: images/s against diffusers compiled, equal dtype"
    if not (torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++")):
        return FigureRow(name, None, "≥ 1.5", "×", "there is no C++ compiler here, which torch.compile needs")
    workload.cast_pipeline(pipeline, load.dtype)
    eager_forward = pipeline.unet.forward
    pipeline.unet.forward = torch.compile(eager_forward, dynamic=False)
    try:
        if error_name := _find_compile_error(pipeline, family, load):
            return FigureRow(name, None, "≥ 1.5", "×", f"torch could not compile the network: {error_name}")
        return FigureRow(name, measure_speedup(pipeline, family, load), "≥ 1.5", "×")
    finally:
        pipeline.unet.forward = eager_forward


def _find_compile_error(pipeline: Any, family: Family, load: Workload) -> str:
    """Return the name of the error that torch's compiler raises on its first use, or nothing."""
    try:
        workload.time_diffusers(pipeline, family, replace(load, steps=2, users=1))
    except RuntimeError as error:  # all of its failures are RuntimeErrors
        log.warning("torch.compile: %s", error)
        return type(error).__name__
    return ""


def compare_guidance_interval(family: Family, load: Workload) -> FigureRow:
    """Compare guidance in the family's interval with guidance at every step.

    `train evaluate` shows the pictures' side.
    """
    interval_load = replace(load, guidance_interval=family.interval)
    workload.time_engine(family, replace(interval_load, steps=8))
    ratios = [workload.time_engine(family, load) / workload.time_engine(family, interval_load) for _ in range(ROUNDS)]
    interval_start, interval_end = family.interval
    note = (
        f"guidance from {interval_start:g} to {interval_end:g} of the steps; `train evaluate --only guidance` has "
        "its pictures"
    )
    return FigureRow("guidance interval on, against off: images/s", median(ratios), "≥ 1.3", "×", note)


def compare_mixed_load(family: Family, load: Workload) -> FigureRow:
    """Compare row-steps a second of a mix of samplers, steps and guidance with a load of one kind."""
    mixed_load = replace(load, mixed=True)
    workload.time_engine(family, replace(mixed_load, steps=8))
    ratios = [workload.time_engine(family, load) / workload.time_engine(family, mixed_load) for _ in range(ROUNDS)]
    ratio = median(ratios) * _count_row_steps(family, mixed_load) / _count_row_steps(family, load)
    return FigureRow("mixed load against an equal one of one kind: row-steps/s", ratio, "≥ 0.95", "×")


def compare_init_images(family: Family, load: Workload) -> FigureRow:
    """Compare jobs from an init image and a mask with as many steps of others; encoding counts, too."""
    init_image_load = replace(load, with_init_image=True)
    workload.time_engine(family, replace(init_image_load, steps=8))
    ratio = median(
        workload.time_engine(family, load) / workload.time_engine(family, init_image_load) for _ in range(ROUNDS)
    )
    return FigureRow("begun with a picture and a mask, against words alone: images/s", ratio, "≥ 0.95", "×")


def _count_row_steps(family: Family, load: Workload) -> int:
    return sum(count_row_steps(job.task) for job in load.make_jobs(family) if isinstance(job.task, Recipe))


def _warm_up(pipeline: Any, family: Family, load: Workload) -> None:
    """Run both sides briefly before the first round, to build kernels and pack weights."""
    brief_load = replace(load, steps=4, users=load.users)
    workload.time_engine(family, brief_load)
    workload.time_diffusers(pipeline, family, replace(brief_load, users=1))
