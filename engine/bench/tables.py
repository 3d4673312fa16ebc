"""Compares every sampler's plan with diffusers' scheduler, over a thousand steps of an affine network.

In double precision only the arithmetic can differ. In float32 diffusers rounds, too: with flow matching by up to 2e-5
over so many steps. So the float32 figure has no goal. Knows schedulers, no weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from engine.bench.row import Row
from engine.job import Sampler
from engine.plan import COLUMNS, TABLED, Plan, Timing, build_scheduler, plan, samplers_for
from engine.plan.probe import Wide
from engine.plan.timing import set_timesteps

STEPS = 1000
SHIFT = 0.8  # of a noise schedule that depends on the picture's size
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

Case = tuple[Mapping[str, Any], Sampler, Timing]


def table_rows(scheduler_config: Mapping[str, Any]) -> list[Row]:
    cases = tabled(scheduler_config)
    double, single = (_worst(error(*case, dtype) for case in cases) for dtype in (torch.float64, torch.float32))
    name = f"{len(cases)} sampler tables against diffusers, {STEPS} steps"
    return [
        Row(f"{name}, double precision", double, "≤ 1e-5", "relative", samples=len(cases)),
        Row(f"{name}, float32", single, None, "relative", samples=len(cases)),
    ]


def tabled(scheduler_config: Mapping[str, Any]) -> list[Case]:
    """Return every sampler that has a plan: this model's, and those of flow-matching models."""
    distilled = {**scheduler_config, "original_inference_steps": STEPS}  # LCM takes no more steps than these
    sigmas = tuple(np.linspace(1.0, 1 / STEPS, STEPS).tolist())  # as the pipelines of Flux and Z-Image set them
    shifted = FLOW | {"use_dynamic_shifting": True}
    models = [(distilled, Timing(SHIFT)), (FLOW, Timing()), (shifted, Timing(SHIFT, sigmas))]
    return [(each, name, timing) for each, timing in models for name in samplers_for(each) if name in TABLED]


def error(scheduler_config: Mapping[str, Any], sampler: Sampler, timing: Timing, dtype: torch.dtype) -> float:
    """Return the largest difference of a step's latents, relative to the largest of them."""
    table = plan(scheduler_config, sampler, STEPS, timing=timing)
    scheduler: Any = build_scheduler(scheduler_config, sampler)
    set_timesteps(scheduler, STEPS, timing)
    taken, generator = inspect.signature(scheduler.step).parameters, torch.Generator().manual_seed(2)
    extra = {"generator": generator} if "generator" in taken else {}
    draws = torch.float32 if sampler == "dpmpp_2m_sde" else dtype  # as diffusers draws there
    ours = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype) * table.init_sigma
    theirs = Wide(ours) if dtype == torch.float64 else ours
    noise, h, found = torch.Generator().manual_seed(2), torch.zeros_like(ours), list[float]()
    for k, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(theirs, t) if hasattr(scheduler, "scale_model_input") else theirs
        theirs = scheduler.step(_network(seen, float(t)), t, theirs, **extra).prev_sample
        drawn = torch.randn(ours.shape, generator=noise, dtype=draws) if table.draws_noise(k) else torch.zeros(())
        ours, h = _step(table, k, ours, h, drawn.to(dtype))
        found.append(float((ours - theirs.as_subclass(torch.Tensor)).abs().max() / theirs.abs().max()))
    return _worst(found)


def _worst(found: Iterable[float]) -> float:
    """Return the largest value; NaN counts as infinite, since `max` would skip it."""
    return max((math.inf if math.isnan(each) else each for each in found), default=math.nan)


def _step(
    table: Plan, k: int, x: torch.Tensor, h: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    at = dict(zip(COLUMNS, table.table[k].tolist(), strict=True))
    out = _network(at["c"] * x, at["t"])
    return at["A"] * x + at["B"] * out + at["M"] * h + at["N"] * noise, at["P"] * x + at["Q"] * out


def _network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stand in for a network: affine, so only rounding can differ; contracting, so a thousand steps stay finite."""
    return 0.3 * x + 0.1 * math.sin(t / 100)
