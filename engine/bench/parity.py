"""Parity rows: the difference of our latents and pictures from the unmodified diffusers pipeline."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from engine.bench.crowd import Load, call
from engine.bench.row import Row
from engine.bench.tables import table_rows
from engine.engine import Developed, Engine
from engine.families.family import Family
from engine.job import Job

STEPS = 25


def parity_rows(pipeline: Any, family: Family) -> list[Row]:
    """Return the parity rows. `pipeline` must be in float32: the goals are about the arithmetic, not about bf16."""
    jobs = Load(STEPS, "float32").jobs(family)
    theirs = call(pipeline, jobs[0], output_type="latent")[0]
    alone, together = (_latents(family, some)[jobs[0].id] for some in (jobs[:1], jobs))
    theirs_seen, ours_seen = (np.asarray(family.decode(each), dtype=np.float64) for each in (theirs, together))
    return [
        *table_rows(dict(pipeline.scheduler.config)),
        Row("latents against diffusers, same batch shape", float((alone - theirs).abs().max()), "≤ 1e-4", "absolute"),
        Row("picture against diffusers, other batch shape", _psnr(theirs_seen, ours_seen), "≥ 60", "dB"),
    ]


def _latents(family: Family, jobs: list[Job]) -> dict[str, torch.Tensor]:
    engine, found = Engine({family.name: family}), dict[str, torch.Tensor]()
    for job in jobs:
        engine.add(job)
    while not engine.idle:
        found |= {event.job: event.latents for event in engine.step() if isinstance(event, Developed)}
    return found


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a - b) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else 120.0  # bit-equal: reported as 120
