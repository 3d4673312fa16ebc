"""How far our pictures are from those of the unmodified diffusers pipeline: samplers, latents, other batch shapes."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch

from engine.bench.crowd import Load, call
from engine.bench.row import Row
from engine.engine import Developed, Engine
from engine.families.family import Family
from engine.job import Job
from engine.plan import COLUMNS, SAMPLERS, Plan, build_scheduler, plan

STEPS = 25
PLAN_STEPS = 1000


def parity_rows(pipeline: Any, family: Family) -> list[Row]:
    """`pipeline` must be in float32: parity is a statement about the arithmetic, not about bf16."""
    jobs = Load(STEPS, "float32").jobs(family)
    theirs = call(pipeline, jobs[0], output_type="latent")[0]
    alone, together = (_latents(family, some)[jobs[0].id] for some in (jobs[:1], jobs))
    theirs_seen, ours_seen = (np.asarray(family.decode(each), dtype=np.float64) for each in (theirs, together))
    worst = max(_table_error(family, sampler) for sampler in SAMPLERS)
    return [
        Row("sampler tables against diffusers, 1000 steps", worst, "≤ 1e-5", "relative"),
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
    return 10 * math.log10(255**2 / error) if error else 120.0  # equal to the bit: call it 120


def _table_error(family: Family, sampler: str) -> float:
    """Largest relative difference along a whole trajectory whose network is affine in its input and the timestep."""
    table = plan(family.scheduler_config, sampler, PLAN_STEPS, 0.0)
    scheduler: Any = build_scheduler(family.scheduler_config, sampler)
    scheduler.set_timesteps(PLAN_STEPS)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * table.init_sigma
    theirs, ours, generator = x.clone(), x.double(), torch.Generator().manual_seed(2)
    noise, h, worst = torch.Generator().manual_seed(2), torch.zeros_like(x).double(), 0.0
    for k, t in enumerate(scheduler.timesteps):
        out = _network(scheduler.scale_model_input(theirs, t), float(t))
        extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        theirs = scheduler.step(out, t, theirs, **extra).prev_sample
        ours, h = _step(table, k, ours, h, noise)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


def _step(
    table: Plan, k: int, x: torch.Tensor, h: torch.Tensor, noise: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    at = dict(zip(COLUMNS, table.table[k], strict=True))
    out = _network(at["c"] * x, at["t"])
    drawn = torch.randn(x.shape, generator=noise) if table.draws_noise(k) else torch.zeros(())
    return at["A"] * x + at["B"] * out + at["M"] * h + at["N"] * drawn.double(), at["P"] * x + at["Q"] * out


def _network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Affine, so that rounding is all that can differ; contracting, so that 1000 steps stay finite."""
    return 0.3 * x + 0.1 * math.sin(t / 100)
