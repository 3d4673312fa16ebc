"""Whole trajectories with a fixed affine network: by diffusers' scheduler as the oracle, and by a plan.

Also the configurations of schedulers that tests of plans share.
"""

from __future__ import annotations

import inspect
import json
import warnings
from typing import Any

import torch

from engine.process.model_settings import WEIGHTS_FOLDER
from engine.sampling import COLUMNS, Plan, TimestepOptions

Config = dict[str, Any]

EMBEDDED: Config = json.loads((WEIGHTS_FOLDER / "scheduler" / "scheduler_config.json").read_text())
EPSILON = {**EMBEDDED, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
VELOCITY = EPSILON | {"prediction_type": "v_prediction"}
SD3: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

SHAPE = (1, 4, 4, 4)
Trajectory = list[torch.Tensor]


class DoubleTensor(torch.Tensor):
    """float64 that ignores `to(torch.float32)`: runs an unmodified diffusers scheduler in double precision."""

    def to(self, *_args: object, **_kwargs: object) -> DoubleTensor:
        return self


def affine_network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Affine in its input, the position and the timestep."""
    return 0.3 * x + 0.1 * torch.sin(torch.arange(x.numel()) * 0.1).view(x.shape) + t / 2000


def set_timesteps(scheduler: Any, steps: int, options: TimestepOptions = TimestepOptions()) -> None:
    """Sets timesteps as pipelines do: `sigmas` instead of a number of steps, and `mu` where the scheduler has it."""
    has_dynamic_shifting = scheduler.config.get("use_dynamic_shifting", False)
    extra: dict[str, Any] = {"mu": options.mu} if has_dynamic_shifting else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, caused by the schedulers' np.array(tensor)
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, for divisions by zero; the tests check the result
        if options.sigmas is None or scheduler.config.get("use_flow_sigmas", False):
            scheduler.set_timesteps(steps, **extra)
        else:
            scheduler.set_timesteps(sigmas=list(options.sigmas), **extra)


def run_scheduler(scheduler: Any, eta: float = 0.0, double: bool = False, first: int = 0) -> Trajectory:
    """Returns the latents after every step of a scheduler with set timesteps, in float32 or double precision.

    `first`: the first step, as in image-to-image pipelines.
    """
    generator = torch.Generator().manual_seed(5)
    parameters = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"eta": eta} if "eta" in parameters else {}
    extra |= {"generator": generator} if "generator" in parameters else {}
    x = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    x = DoubleTensor(x.double()) if double else x
    trajectory = []
    for t in scheduler.timesteps[first:]:
        scaled_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(affine_network(scaled_input, float(t)), t, x, **extra).prev_sample
        trajectory.append(x.as_subclass(torch.Tensor))
    return trajectory


def run_plan(plan: Plan, double: bool = False, draws: torch.dtype | None = None, first: int = 0) -> Trajectory:
    """Runs a plan's table like `run_scheduler`. `draws`: the number format of the noise, if not that of the latents."""
    generator = torch.Generator().manual_seed(5)
    dtype = torch.float64 if double else torch.float32
    x = (torch.randn(SHAPE, generator=generator) * plan.init_sigma).to(dtype)
    h = torch.zeros(SHAPE, dtype=dtype)
    trajectory = []
    for k in range(first, plan.steps):
        row = dict(zip(COLUMNS, plan.table[k].tolist(), strict=True))
        noise = (
            torch.randn(SHAPE, generator=generator, dtype=draws or dtype) if plan.has_noise_draw(k) else torch.zeros(())
        )
        output = affine_network(row["c"] * x, row["t"])
        x, h = (
            row["A"] * x + row["B"] * output + row["M"] * h + row["N"] * noise.to(dtype),
            row["P"] * x + row["Q"] * output,
        )
        trajectory.append(x)
    return trajectory


def relative_difference(actual: Trajectory, expected: Trajectory) -> float:
    """The largest difference between a step's latents, relative to that step's largest value."""
    pairs = zip(actual, expected, strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs)
