"""The engine rows of `darkroom bench`: each goal is measured beside diffusers in the same run.

`quick` measures the README's first claims in a few minutes; all rows take about twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.bench import network, overhead, previews, throughput
from engine.bench.crowd import USERS, Load, cast
from engine.bench.moving import moving_rows
from engine.bench.parity import parity_rows
from engine.bench.row import Row
from engine.calibration import Calibration, calibrate
from engine.families.embedded import assemble, load_embedded
from engine.families.family import Family

STEPS = 50  # throughput: enough for steps to dominate the time, few enough for three rounds
LONG = 200  # for the time of a step outside the network
WAITED, WAITED_QUICKLY = 1000, 200  # previews: our advantage grows with the jobs' length
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sides:
    """The embedded model twice: our calibrated family, and the diffusers pipeline in float32, its default."""

    family: Family
    pipeline: Any
    found: Calibration

    @property
    def load(self) -> Load:
        """Return the load with the number format and batch limit that a worker would use here."""
        return Load(STEPS, self.found.dtype, rows=self.found.rows)


def both(data: Path) -> Sides:
    family = load_embedded()
    return Sides(family, assemble(), calibrate(family, data / "calibration.json"))


def quick_rows(sides: Sides, say: Say) -> Iterator[Row]:
    """Yield the rows of the README's first claims."""
    family, pipeline, load = sides.family, sides.pipeline, sides.load
    yield from _by_default(sides, say)
    say("time to the preview at a tenth")
    yield sooner(pipeline, family, replace(load, steps=WAITED_QUICKLY), "≥ 15")
    say(f"throughput against diffusers in {load.dtype}, and the network alone")
    yield throughput.equal_dtype(pipeline, family, load, "≥ 0.95")


def all_rows(sides: Sides, say: Say) -> Iterator[Row]:
    """Yield every row for the embedded model, ordered so that the diffusers pipeline is cast only once."""
    family, pipeline, load = sides.family, sides.pipeline, sides.load
    yield from _by_default(sides, say)
    say(f"time to the preview at a tenth of {WAITED} steps: diffusers takes minutes")
    yield sooner(pipeline, family, replace(load, steps=WAITED), "≥ 25")
    yield any_preview(family, replace(load, steps=WAITED))
    say(f"throughput against diffusers in {load.dtype}, and the network alone")
    yield throughput.equal_dtype(pipeline, family, load, "≥ 0.95")
    yield throughput.of_four(pipeline, family, load)
    say("guidance interval, mixed load, init images")
    yield throughput.interval(family, load)
    yield throughput.mixed(family, load)
    yield throughput.begun(family, load)
    say("time of a step outside the network")
    yield from network.packed_rows(family, load.dtype)
    yield overhead.outside_the_network(family, replace(load, steps=LONG))
    yield overhead.watched(family, load)
    yield overhead.cancelled(family, load)
    yield overhead.beside_a_flood(family, replace(load, count=4), sides.found.bucket_ms)
    yield overhead.beside_a_flood(family, load, sides.found.bucket_ms)
    say("killed and resumed")
    yield from moving_rows(family, load)
    say("against diffusers compiled")
    yield throughput.compiled(cast(pipeline, load.dtype), family, load)


def _by_default(sides: Sides, say: Say) -> Iterator[Row]:
    """Yield the rows that need the diffusers pipeline in float32, its default."""
    say(f"embedded model, {USERS} users, ours in {sides.load.dtype}, at most {sides.load.rows} rows a forward")
    yield from parity_rows(sides.pipeline, sides.family)
    say("throughput against diffusers as it runs by default")
    yield throughput.by_default(sides.pipeline, sides.family, sides.load, "≥ 4")


def sooner(pipeline: Any, family: Family, load: Load, goal: str) -> Row:
    """Compare the p95 time at which users see the preview at a tenth of the steps: diffusers' by ours."""
    theirs, ours = previews.in_turn(pipeline, family, load), previews.together(family, load)
    times = previews.p95(theirs), previews.p95(ours)
    name = f"p95 time to the 10 % preview of {load.steps} steps, sooner than diffusers by default"
    note = f"{times[1]:.2f} s instead of {times[0]:.1f}"
    return Row(name, times[0] / times[1], goal, "×", note, min(len(theirs), len(ours)), load.users)


def any_preview(family: Family, load: Load) -> Row:
    seen = previews.together(family, load, share=0.0)
    name = f"p95 time to any preview, {load.users} users"
    return Row(name, previews.p95(seen), "≤ 0.5", "s", samples=len(seen), of=load.users)
