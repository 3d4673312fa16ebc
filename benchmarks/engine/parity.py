"""Parity rows: the difference of our latents and pictures from the unmodified diffusers pipeline."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.engine.plan_accuracy import measure_plan_rows
from benchmarks.engine.workload import Workload, run_pipeline
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import psnr
from engine.batching.engine import Engine, LatentsDone
from engine.contract import Job
from engine.models.family import Family

STEPS = 25


def measure_parity_rows(pipeline: Any, family: Family) -> list[FigureRow]:
    """Return the parity rows. `pipeline` must be in float32: the goals are about the arithmetic, not about bf16."""
    jobs = Workload(STEPS, "float32").make_jobs(family)
    diffusers_latents = run_pipeline(pipeline, jobs[0], output_type="latent")[0]
    single_latents, batched_latents = (_run_jobs(family, batch_jobs)[jobs[0].id] for batch_jobs in (jobs[:1], jobs))
    diffusers_picture, engine_picture = (family.decode(latents) for latents in (diffusers_latents, batched_latents))
    return [
        *measure_plan_rows(dict(pipeline.scheduler.config)),
        FigureRow(
            "latents against diffusers, same batch shape",
            float((single_latents - diffusers_latents).abs().max()),
            "≤ 1e-4",
            "absolute",
        ),
        FigureRow(
            "picture against diffusers, other batch shape", psnr(diffusers_picture, engine_picture), "≥ 60", "dB"
        ),
    ]


def _run_jobs(family: Family, jobs: list[Job]) -> dict[str, torch.Tensor]:
    engine = Engine({family.name: family})
    latents = dict[str, torch.Tensor]()
    for job in jobs:
        engine.add(job)
    while not engine.is_idle:
        latents |= {event.job: event.latents for event in engine.step() if isinstance(event, LatentsDone)}
    return latents
