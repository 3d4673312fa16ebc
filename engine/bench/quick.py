"""`darkroom bench --quick`: the claims of the README, each beside its rival in the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from engine.bench import crowd
from engine.bench.crowd import USERS, Load
from engine.bench.parity import parity_rows
from engine.bench.row import Row
from engine.calibration import calibrate
from engine.families.embedded import assemble, load_embedded
from engine.families.family import Family

ROUNDS = 3
STEPS = 50  # throughput: long enough for a step to dominate, short enough for three rounds
LONG = 200  # previews: the advantage grows with the length of the jobs that a rival must wait for


def quick_rows(data: Path, say: Callable[[str], None]) -> list[Row]:
    """Loads the embedded model twice (ours and the rival's), calibrates it in `data`, and measures."""
    family, pipeline = load_embedded(), assemble()
    dtype = calibrate(family, data / "calibration.json").dtype
    say(f"embedded model, {USERS} users, ours in {dtype}")
    parity = parity_rows(pipeline, family)
    say("parity measured; throughput against diffusers as it runs by default")
    load = Load(STEPS, dtype)
    crowd.serve_together(family, Load(4, dtype))  # both warm before the first round
    crowd.serve_in_turn(pipeline, family, Load(2, dtype))
    rounds = [(crowd.serve_in_turn(pipeline, family, load), crowd.serve_together(family, load)) for _ in range(ROUNDS)]
    faster = median(theirs / ours for theirs, ours in rounds)
    say("time to the first tenth")
    long = Load(LONG, dtype)
    sooner = _p95(crowd.previews_in_turn(pipeline, family, long)) / _p95(crowd.previews_together(family, long))
    say(f"throughput against diffusers in {dtype}, and the network alone")
    share, note = _share(pipeline, family, load)
    return [
        Row(f"{USERS} users × 1 picture: images/s against diffusers by default", faster, "≥ 3.5", "×"),
        Row("the same in equal dtype, as a share of the bare network's batch gain", share, "≥ 0.9", "", note),
        Row("p95 time to the 10 % preview, sooner than diffusers by default", sooner, "≥ 15", "×"),
        *parity,
    ]


def _share(pipeline: Any, family: Family, load: Load) -> tuple[float, str]:
    """Our gain over the pipeline in our dtype, divided by what the bare network gains from sixteen rows at once."""
    pipeline = crowd.cast(pipeline, load.dtype)
    crowd.serve_in_turn(pipeline, family, Load(2, load.dtype))
    rounds = [
        (
            crowd.serve_in_turn(pipeline, family, load),
            crowd.serve_together(family, load),
            crowd.network_gain(family, load.dtype),
        )
        for _ in range(ROUNDS)
    ]
    ours = median(theirs / ours for theirs, ours, _ in rounds)
    bare = median(gain for *_, gain in rounds)
    return ours / bare, f"{ours:.2f} × faster where the bare network gains {bare:.2f} ×"


def _p95(values: list[float]) -> float:
    """The 95th percentile by linear interpolation, as numpy defines it."""
    return float(np.percentile(values, 95))
