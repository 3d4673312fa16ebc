"""Measures our engine on one job in its own process: step time, decode time and memory.

    python -m engine.bench.models.ours ORDER.json

It reads the same order file as `rival` and prints the same facts. No one watches the job, so there are no previews.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from engine import families
from engine.bench.models.rival import memory, print_fact, wait_for_card
from engine.bench.oracle import make_job
from engine.calibration import calibrate
from engine.device import best
from engine.engine import Developed, Engine, Failed
from engine.families.family import Family
from engine.job import Concept, Job, Recipe, Warm
from engine.lane import Lane


def main(order: dict[str, Any]) -> None:
    data = Path(order["data"])
    family = families.load(order["folder"], data, device=best())
    warm = calibrate(family, data / "calibration.json").warm(family)
    print_fact(loaded=memory(), dtype=warm.dtype)
    for number in range(order["pictures"]):
        _run(order, family, _job(order, warm, number))


def _run(order: dict[str, Any], family: Family, job: Job) -> None:
    """Draw one picture and print when its steps and its decode ended."""
    engine, lane = Engine({family.name: family}), Lane({family.name: family})
    ends, pictures = list[float](), list[Future[bytes]]()
    begun = time.perf_counter()
    try:
        engine.add(job, (), lane.begin(job, {}).result())
        while not engine.idle:
            for event in engine.step():
                if isinstance(event, Failed):
                    raise RuntimeError(event.reason)
                if isinstance(event, Developed):
                    pictures.append(lane.picture(event, job))
            wait_for_card()
            ends.append(time.perf_counter())
        png = pictures[0].result()
        done = time.perf_counter()
        (Path(order["out"]) / f"ours-{job.id}.png").write_bytes(png)
    finally:
        engine.close()
        lane.close()
    step = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None
    print_fact(picture=done - begun, step=step, decode=done - ends[-1], memory=memory())


def _job(order: dict[str, Any], warm: Warm, seed: int) -> Job:
    recipe = Recipe(
        concepts=(Concept(order["prompt"]),), model=warm.name, sampler=order["sampler"] or warm.sampler,
        steps=order["steps"], seed=seed, guidance=order["guidance"], width=order["side"], height=order["side"],
        count=1, dtype=warm.dtype, guides=warm.guides,
    )  # fmt: skip
    return make_job(recipe, seed)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(json.loads(Path(sys.argv[1]).read_text()))
