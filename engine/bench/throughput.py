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

from engine.bench import crowd, network
from engine.bench.crowd import USERS, Load
from engine.bench.row import Row
from engine.families.family import Family
from engine.families.pipelined import Pipelined
from engine.job import Recipe, row_steps

log = logging.getLogger(__name__)

ROUNDS = 3
Say = Callable[[str], None]


def faster(pipeline: Any, family: Family, load: Load, rounds: int | None = None) -> float:
    """Return our pictures a second divided by the pipeline's."""
    _warm(pipeline, family, load)
    return median(_ratio(pipeline, family, load) for _ in range(rounds or ROUNDS))


def _ratio(pipeline: Any, family: Family, load: Load) -> float:
    """Run one round. The pipeline encodes each job's prompt anew, so our cache is emptied."""
    if isinstance(family, Pipelined):
        family.forget_texts()
    return crowd.serve_in_turn(pipeline, family, load) / crowd.serve_together(family, load)


def by_default(pipeline: Any, family: Family, load: Load, goal: str) -> Row:
    """Compare with `pipeline` in float32, as diffusers loads it."""
    name = f"{load.users} users × {load.count} picture: images/s against diffusers by default"
    return Row(name, faster(pipeline, family, load), goal, "×")


def equal_dtype(pipeline: Any, family: Family, load: Load, goal: str) -> Row:
    """Divide our gain over the pipeline in our number format by the bare network's gain from sixteen rows at once."""
    crowd.cast(pipeline, load.dtype)
    _warm(pipeline, family, load)
    rounds = [(_ratio(pipeline, family, load), network.gain(family, load.dtype)) for _ in range(ROUNDS)]
    ours, bare = (median(each) for each in zip(*rounds, strict=True))
    note = f"{ours:.2f} × faster where the bare network gains {bare:.2f} ×"
    return Row("the same in equal dtype, as a share of the bare network's batch gain", ours / bare, goal, "", note)


def of_four(pipeline: Any, family: Family, load: Load) -> Row:
    """Compare jobs of four pictures, which the pipeline batches itself; both in our number format."""
    crowd.cast(pipeline, load.dtype)
    four = replace(load, count=4)
    return Row(f"{USERS} users × 4 pictures: images/s, equal dtype", faster(pipeline, family, four), "≥ 1.15", "×")


def compiled(pipeline: Any, family: Family, load: Load) -> Row:
    """Compare with the pipeline's network compiled by torch, in our number format. Compile time is not counted."""
    name = f"{USERS} users × 1 picture: images/s against diffusers compiled, equal dtype"
    if not (torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++")):
        return Row(name, None, "≥ 1.5", "×", "there is no C++ compiler here, which torch.compile needs")
    crowd.cast(pipeline, load.dtype)
    plain = pipeline.unet.forward
    pipeline.unet.forward = torch.compile(plain, dynamic=False)
    try:
        if why := _fails(pipeline, family, load):
            return Row(name, None, "≥ 1.5", "×", f"torch could not compile the network: {why}")
        return Row(name, faster(pipeline, family, load), "≥ 1.5", "×")
    finally:
        pipeline.unet.forward = plain


def _fails(pipeline: Any, family: Family, load: Load) -> str:
    """Return the name of the error that torch's compiler raises on its first use, or nothing."""
    try:
        crowd.serve_in_turn(pipeline, family, replace(load, steps=2, users=1))
    except RuntimeError as error:  # all of its failures are RuntimeErrors
        log.warning("torch.compile: %s", error)
        return type(error).__name__
    return ""


def interval(family: Family, load: Load) -> Row:
    """Compare guidance in the family's interval with guidance at every step.

    `train evaluate` shows the pictures' side.
    """
    within = replace(load, interval=family.interval)
    crowd.serve_together(family, replace(within, steps=8))
    ratios = [crowd.serve_together(family, load) / crowd.serve_together(family, within) for _ in range(ROUNDS)]
    first, last = family.interval
    note = f"guidance from {first:g} to {last:g} of the steps; `train evaluate --only guidance` has its pictures"
    return Row("guidance interval on, against off: images/s", median(ratios), "≥ 1.3", "×", note)


def mixed(family: Family, load: Load) -> Row:
    """Compare row-steps a second of a mix of samplers, steps and guidance with a load of one kind."""
    other = replace(load, mixed=True)
    crowd.serve_together(family, replace(other, steps=8))
    ratios = [crowd.serve_together(family, load) / crowd.serve_together(family, other) for _ in range(ROUNDS)]
    ratio = median(ratios) * _row_steps(family, other) / _row_steps(family, load)
    return Row("mixed load against an equal one of one kind: row-steps/s", ratio, "≥ 0.95", "×")


def begun(family: Family, load: Load) -> Row:
    """Compare jobs from an init image and a mask with as many steps of others; encoding counts, too."""
    other = replace(load, begun=True)
    crowd.serve_together(family, replace(other, steps=8))
    ratio = median(crowd.serve_together(family, load) / crowd.serve_together(family, other) for _ in range(ROUNDS))
    return Row("begun with a picture and a mask, against words alone: images/s", ratio, "≥ 0.95", "×")


def _row_steps(family: Family, load: Load) -> int:
    return sum(row_steps(job.task) for job in load.jobs(family) if isinstance(job.task, Recipe))


def _warm(pipeline: Any, family: Family, load: Load) -> None:
    """Run both sides briefly before the first round, to build kernels and pack weights."""
    brief = replace(load, steps=4, users=load.users)
    crowd.serve_together(family, brief)
    crowd.serve_in_turn(pipeline, family, replace(brief, users=1))
