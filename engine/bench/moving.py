"""Kills jobs at a random step and resumes them from the snapshot: compares the pictures with uninterrupted runs."""

from __future__ import annotations

import math
from random import Random

import msgspec
import numpy as np
import torch

from engine.bench.crowd import Load
from engine.bench.row import Row
from engine.engine import Developed, Engine
from engine.families.family import Family
from engine.job import Job, decode, encode
from engine.job import Snapshot as Saved

KILLS = 12
SEED = 5
FAR = 120.0  # dB for equal pictures


def moving_rows(family: Family, load: Load) -> list[Row]:
    """Kill and resume jobs in batches with other jobs: once pinned to a batch layout (`exact`), once not."""
    random, jobs = Random(SEED), load.jobs(family)
    pinned = [msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, bucket=2)) for job in jobs]
    equal, worst = 0, FAR
    for number in range(KILLS):
        job, k = pinned[number % len(pinned)], random.randrange(1, load.steps)
        others = [other for other in pinned if other.id != job.id]
        equal += torch.equal(_whole(family, job), _killed(family, job, random.sample(others, 3 % len(others)), k))
    for number in range(KILLS):
        job = jobs[number % len(jobs)]
        others = [mate for mate in random.sample(jobs, random.randrange(len(jobs))) if mate.id != job.id]
        straight, moved = _whole(family, job), _killed(family, job, others, random.randrange(1, load.steps))
        worst = min(worst, psnr(family, straight, moved))
    return [
        Row(
            f"killed and resumed {KILLS} times, exact: equal to the bit", equal, f"= {KILLS}", "pictures",
            samples=KILLS, of=max(1, KILLS),
        ),
        Row(
            f"killed and resumed {KILLS} times beside others, {load.dtype}: worst", worst, None, "dB", samples=KILLS,
            of=max(1, KILLS),
        ),
    ]  # fmt: skip


def _whole(family: Family, job: Job) -> torch.Tensor:
    engine = Engine({family.name: family})
    engine.add(job)
    return _finish(engine, job)


def _killed(family: Family, job: Job, mates: list[Job], k: int) -> torch.Tensor:
    """Run `k` steps in one engine and the rest in another beside `mates`; between them the snapshot is serialised."""
    engine = Engine({family.name: family})
    engine.add(job)
    for _ in range(k):
        engine.step()
    saved = [decode(encode(each), Saved) for each in engine.snapshots(job.id, 1)]
    other = Engine({family.name: family})
    for mate in mates:
        other.add(mate)
    other.add(job, saved)
    return _finish(other, job)


def _finish(engine: Engine, job: Job) -> torch.Tensor:
    while True:
        for event in engine.step():
            if isinstance(event, Developed) and event.job == job.id:
                return event.latents


def psnr(family: Family, one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the PSNR between the decoded pictures in dB."""
    a, b = (np.asarray(family.decode(each), dtype=np.float64) for each in (one, other))
    error = float(((a - b) ** 2).mean())
    return min(FAR, 10 * math.log10(255**2 / error)) if error else FAR
