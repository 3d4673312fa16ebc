"""Whole trajectories with a recorded affine network: by a scheduler of diffusers, the oracle, and by a plan."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch

from engine.plan import COLUMNS, Plan, Timing

SHAPE = (1, 4, 4, 4)
Trajectory = list[torch.Tensor]


class Double(torch.Tensor):
    """float64 that `to(torch.float32)` leaves alone: a scheduler of diffusers in double precision, else unmodified."""

    def to(self, *_args: object, **_kwargs: object) -> Double:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Affine: in its input, in the position and in the timestep."""
    return 0.3 * x + 0.1 * torch.sin(torch.arange(x.numel()) * 0.1).view(x.shape) + t / 2000


def set_timesteps(scheduler: Any, steps: int, timing: Timing = Timing()) -> None:
    """As the pipelines do: `sigmas` instead of a number of steps, and `mu` where the scheduler knows it."""
    dynamic = scheduler.config.get("use_dynamic_shifting", False)
    extra: dict[str, Any] = {"mu": timing.mu} if dynamic else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, of the schedulers' np.array(tensor)
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of divisions by zero, whose result is looked at
        if timing.sigmas is None or scheduler.config.get("use_flow_sigmas", False):
            scheduler.set_timesteps(steps, **extra)
        else:
            scheduler.set_timesteps(sigmas=list(timing.sigmas), **extra)


def by_diffusers(scheduler: Any, eta: float = 0.0, double: bool = False, first: int = 0) -> Trajectory:
    """The latents after every step of a scheduler whose timesteps are set, in float32 or in double precision.

    `first`: the step that it begins with, as image-to-image pipelines do.
    """
    generator = torch.Generator().manual_seed(5)
    taken = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"eta": eta} if "eta" in taken else {}
    extra |= {"generator": generator} if "generator" in taken else {}
    x = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    x, trajectory = Double(x.double()) if double else x, []
    for t in scheduler.timesteps[first:]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, float(t)), t, x, **extra).prev_sample
        trajectory.append(x.as_subclass(torch.Tensor))
    return trajectory


def by_plan(plan: Plan, double: bool = False, draws: torch.dtype | None = None, first: int = 0) -> Trajectory:
    """The same by a table; `draws` is the precision in which the scheduler draws, if not that of the latents."""
    generator, dtype = torch.Generator().manual_seed(5), torch.float64 if double else torch.float32
    x = (torch.randn(SHAPE, generator=generator) * plan.init_sigma).to(dtype)
    h, trajectory = torch.zeros(SHAPE, dtype=dtype), []
    for k in range(first, plan.steps):
        at = dict(zip(COLUMNS, plan.table[k].tolist(), strict=True))
        drawn = (
            torch.randn(SHAPE, generator=generator, dtype=draws or dtype) if plan.draws_noise(k) else torch.zeros(())
        )
        out = network(at["c"] * x, at["t"])
        x, h = at["A"] * x + at["B"] * out + at["M"] * h + at["N"] * drawn.to(dtype), at["P"] * x + at["Q"] * out
        trajectory.append(x)
    return trajectory


def apart(ours: Trajectory, theirs: Trajectory) -> float:
    """The largest difference of a step's latents, relative to the largest of that step's."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs)
