"""Kills jobs at a random step and resumes them from the snapshot: compares the pictures with uninterrupted runs."""

from __future__ import annotations

from random import Random

import msgspec
import torch

from benchmarks.engine.workload import Workload
from benchmarks.fixtures.jobs import run_to_end
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import EQUAL_PSNR, psnr
from engine.batching.engine import Engine, LatentsDone
from engine.contract import Job, Snapshot, decode, encode
from engine.models.family import Family

KILL_COUNT = 12
SEED = 5


def measure_resume_rows(family: Family, load: Workload) -> list[FigureRow]:
    """Kill and resume jobs in batches with other jobs: once pinned to a batch shape, once not."""
    random = Random(SEED)
    jobs = load.make_jobs(family)
    pinned_jobs = [msgspec.structs.replace(job, task=msgspec.structs.replace(job.task, bucket=2)) for job in jobs]
    equal_count = 0
    worst_psnr = EQUAL_PSNR
    for number in range(KILL_COUNT):
        job = pinned_jobs[number % len(pinned_jobs)]
        kill_step = random.randrange(1, load.steps)
        others = [other for other in pinned_jobs if other.id != job.id]
        resumed = _run_resumed(family, job, random.sample(others, 3 % len(others)), kill_step)
        equal_count += torch.equal(_run_uninterrupted(family, job), resumed)
    for number in range(KILL_COUNT):
        job = jobs[number % len(jobs)]
        others = [other for other in random.sample(jobs, random.randrange(len(jobs))) if other.id != job.id]
        uninterrupted = _run_uninterrupted(family, job)
        resumed = _run_resumed(family, job, others, random.randrange(1, load.steps))
        worst_psnr = min(worst_psnr, decoded_psnr(family, uninterrupted, resumed))
    name = f"killed and resumed {KILL_COUNT} times"
    counts = KILL_COUNT, max(1, KILL_COUNT)
    return [
        FigureRow(f"{name}, exact: equal to the bit", equal_count, f"= {KILL_COUNT}", "pictures", "", *counts),
        FigureRow(f"{name} beside others, {load.dtype}: worst", worst_psnr, None, "dB", "", *counts),
    ]


def is_resumed_equal(family: Family, job: Job, kill_step: int) -> bool:
    """Return whether a job that is killed after so many steps of the engine, and resumed, ends with the same bits."""
    return torch.equal(_run_uninterrupted(family, job), _run_resumed(family, job, [], kill_step))


def _run_uninterrupted(family: Family, job: Job) -> torch.Tensor:
    engine = Engine({family.name: family})
    engine.add(job)
    return _run_to_end(engine, job)


def _run_resumed(family: Family, job: Job, other_jobs: list[Job], kill_step: int) -> torch.Tensor:
    """Run `kill_step` steps in one engine and the rest in another beside `other_jobs`, from a serialised snapshot."""
    engine = Engine({family.name: family})
    engine.add(job)
    for _ in range(kill_step):
        engine.step()
    snapshots = [decode(encode(snapshot), Snapshot) for snapshot in engine.take_snapshots(job.id, 1)]
    second_engine = Engine({family.name: family})
    for other_job in other_jobs:
        second_engine.add(other_job)
    second_engine.add(job, snapshots)
    return _run_to_end(second_engine, job)


def _run_to_end(engine: Engine, job: Job) -> torch.Tensor:
    ends = (event for event in run_to_end(engine) if isinstance(event, LatentsDone) and event.job == job.id)
    return next(ends).latents


def decoded_psnr(family: Family, first_latents: torch.Tensor, second_latents: torch.Tensor) -> float:
    """Return the PSNR between the decoded pictures in dB."""
    return psnr(family.decode(first_latents), family.decode(second_latents))
