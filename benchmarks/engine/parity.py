"""Parity rows: our latents, pictures and sampler tables beside unmodified diffusers.

Every sampler's plan is compared with its scheduler over a thousand steps of an affine network. In double precision only
the arithmetic can differ. In float32 diffusers rounds, too: with flow matching by up to 2e-5 over so many steps. So
that figure has no goal.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.engine.workload import Workload, run_pipeline
from benchmarks.fixtures.jobs import run_to_end
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import psnr
from engine.batching.engine import Engine, LatentsDone
from engine.contract import Job, Sampler
from engine.models.family import Family
from engine.sampling import COLUMNS, TABLED, Plan, TimestepOptions, build_scheduler, plan, samplers_for
from engine.sampling.probe import UncastableTensor
from engine.sampling.samplers import set_timesteps

STEPS = 25


def measure_parity_rows(pipeline: Any, family: Family) -> list[FigureRow]:
    """Return the parity rows. `pipeline` must be in float32: the goals are about the arithmetic, not about bf16."""
    jobs = Workload(STEPS, "float32").make_jobs(family)
    diffusers_latents = run_pipeline(pipeline, jobs[0], output_type="latent")[0]
    single_latents, batched_latents = (_run_jobs(family, batch_jobs)[jobs[0].id] for batch_jobs in (jobs[:1], jobs))
    diffusers_picture, engine_picture = (family.decode(latents) for latents in (diffusers_latents, batched_latents))
    error = float((single_latents - diffusers_latents).abs().max())
    likeness = psnr(diffusers_picture, engine_picture)
    return [
        *measure_plan_rows(dict(pipeline.scheduler.config)),
        FigureRow("latents against diffusers, same batch shape", error, "≤ 1e-4", "absolute"),
        FigureRow("picture against diffusers, other batch shape", likeness, "≥ 60", "dB"),
    ]


def _run_jobs(family: Family, jobs: list[Job]) -> dict[str, torch.Tensor]:
    engine = Engine({family.name: family})
    for job in jobs:
        engine.add(job)
    return {event.job: event.latents for event in run_to_end(engine) if isinstance(event, LatentsDone)}


PLAN_STEPS = 1000
TIMESTEP_SHIFT = 0.8  # of a noise schedule that depends on the picture's size
FLOW_CONFIG = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

SamplerCase = tuple[Mapping[str, Any], Sampler, TimestepOptions]


def measure_plan_rows(scheduler_config: Mapping[str, Any]) -> list[FigureRow]:
    cases = list_planned_samplers(scheduler_config)
    worst_float64, worst_float32 = (
        _find_worst(measure_plan_error(*case, dtype) for case in cases) for dtype in (torch.float64, torch.float32)
    )
    name = f"{len(cases)} sampler tables against diffusers, {PLAN_STEPS} steps"
    return [
        FigureRow(f"{name}, double precision", worst_float64, "≤ 1e-5", "relative", samples=len(cases)),
        FigureRow(f"{name}, float32", worst_float32, None, "relative", samples=len(cases)),
    ]


def list_planned_samplers(scheduler_config: Mapping[str, Any]) -> list[SamplerCase]:
    """Return every sampler that has a plan: this model's, and those of flow-matching models."""
    lcm_config = {**scheduler_config, "original_inference_steps": PLAN_STEPS}  # LCM takes no more steps than these
    # as the pipelines of Flux and Z-Image set them
    sigmas = tuple(np.linspace(1.0, 1 / PLAN_STEPS, PLAN_STEPS).tolist())
    shifted_config = FLOW_CONFIG | {"use_dynamic_shifting": True}
    configs_with_timing = [
        (lcm_config, TimestepOptions(TIMESTEP_SHIFT)),
        (FLOW_CONFIG, TimestepOptions()),
        (shifted_config, TimestepOptions(TIMESTEP_SHIFT, sigmas)),
    ]
    return [
        (config, sampler, timing)
        for config, timing in configs_with_timing
        for sampler in samplers_for(config)
        if sampler in TABLED
    ]


def measure_plan_error(
    scheduler_config: Mapping[str, Any], sampler: Sampler, timing: TimestepOptions, dtype: torch.dtype
) -> float:
    """Return the largest difference of a step's latents, relative to the largest of them."""
    sampler_plan = plan(scheduler_config, sampler, PLAN_STEPS, timing=timing)
    scheduler: Any = build_scheduler(scheduler_config, sampler)
    set_timesteps(scheduler, PLAN_STEPS, timing)
    parameters = inspect.signature(scheduler.step).parameters
    generator = torch.Generator().manual_seed(2)
    step_options = {"generator": generator} if "generator" in parameters else {}
    noise_dtype = torch.float32 if sampler == "dpmpp_2m_sde" else dtype  # as diffusers draws there
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plan_latents = noise.to(dtype) * sampler_plan.init_sigma
    scheduler_latents = UncastableTensor(plan_latents) if dtype == torch.float64 else plan_latents
    noise_generator = torch.Generator().manual_seed(2)
    history = torch.zeros_like(plan_latents)
    step_errors = list[float]()
    for step, t in enumerate(scheduler.timesteps):
        is_scaled = hasattr(scheduler, "scale_model_input")
        model_input = scheduler.scale_model_input(scheduler_latents, t) if is_scaled else scheduler_latents
        output = _affine_network(model_input, float(t))
        scheduler_latents = scheduler.step(output, t, scheduler_latents, **step_options).prev_sample
        shape = plan_latents.shape if sampler_plan.has_noise_draw(step) else (0,)
        step_noise = torch.randn(shape, generator=noise_generator, dtype=noise_dtype).to(dtype)
        plan_latents, history = _apply_plan_step(sampler_plan, step, plan_latents, history, step_noise)
        difference = (plan_latents - scheduler_latents.as_subclass(torch.Tensor)).abs().max()
        step_errors.append(float(difference / scheduler_latents.abs().max()))
    return _find_worst(step_errors)


def _find_worst(errors: Iterable[float]) -> float:
    """Return the largest value; NaN counts as infinite, since `max` would skip it."""
    return max((math.inf if math.isnan(value) else value for value in errors), default=math.nan)


def _apply_plan_step(
    sampler_plan: Plan, step: int, x: torch.Tensor, history: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    row = dict(zip(COLUMNS, sampler_plan.table[step].tolist(), strict=True))
    output = _affine_network(row["c"] * x, row["t"])
    next_x = row["A"] * x + row["B"] * output + row["M"] * history + (row["N"] * noise if noise.numel() else 0.0)
    return next_x, row["P"] * x + row["Q"] * output


def _affine_network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stand in for a network: affine, so only rounding can differ; contracting, so a thousand steps stay finite."""
    return 0.3 * x + 0.1 * math.sin(t / 100)
