"""A sampler as a table of coefficients, one row a step.

Every step of the usual samplers is linear in what it is given:

    network input = c·x        x0 = P·x + Q·out        x' = A·x + B·out + M·h + N·noise        h' = x0

so a scheduler of diffusers becomes a float64 table, and images with different samplers and step counts share one
fused update. The coefficients are had by *probing* the scheduler with a basis; no formula is copied. What is not
linear (clipping, thresholding) or not finite is refused with a sentence. Knows no networks, devices or jobs.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

COLUMNS = ("t", "c", "A", "B", "M", "N", "P", "Q", "alpha", "sigma")
SAMPLERS: dict[str, tuple[type, dict[str, object]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
}
# StableDiffusionPipeline rewrites its scheduler's configuration to these; being off by them costs 8e-3 in the latents.
AS_THE_PIPELINE = {"steps_offset": 1, "clip_sample": False}

X, OUT, HISTORY, NOISE = range(4)
_SEED = 7
_TOLERANCE = 1e-7
_NOTHING = 1e-13  # what subtracting N·noise leaves where a coefficient is zero


@dataclass(frozen=True)
class Plan:
    """`table[k]` holds the coefficients of step `k`, in the order of `COLUMNS` (float64, `[steps, 10]`).

    `alpha, sigma` are the noise level at which step `k` predicts: x = alpha·x0 + sigma·eps. `init_sigma` scales the
    first draw. `draws[k]` is how many noise draws come before step `k`'s own, the initial latents being the first;
    `draws[steps]` is how many there are at all.
    """

    table: np.ndarray
    init_sigma: float
    draws: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.table)

    @property
    def keeps_history(self) -> bool:
        """True for a multistep sampler: the previous x0 enters the next step."""
        return bool(self.table[:, COLUMNS.index("M")].any())

    def draws_noise(self, k: int) -> bool:
        return self.draws[k + 1] > self.draws[k]


def plan(scheduler_config: Mapping[str, Any], sampler: str, steps: int, eta: float = 0.0) -> Plan:
    """The table of `sampler` for a model's scheduler configuration; cached. Raises ValueError with a sentence."""
    if sampler not in SAMPLERS:
        raise ValueError(f"There is no sampler called {sampler}.")
    return _plan(json.dumps(dict(scheduler_config), sort_keys=True, default=str), sampler, steps, eta)


@lru_cache(maxsize=256)
def _plan(scheduler_config: str, sampler: str, steps: int, eta: float) -> Plan:
    # At zero terminal SNR, DDIM with eta 1 takes the root of 1 - a - s², which is 0 ± rounding: where diffusers itself
    # draws NaN, a hair less noise puts it right.
    for nudged in (eta, eta * (1 - 1e-6)):
        found = _probe(build_scheduler(json.loads(scheduler_config), sampler), steps, nudged)
        if found is not None:
            return found
    raise ValueError(f"The sampler {sampler} cannot take {steps} steps with this model's noise schedule.")


def build_scheduler(scheduler_config: Mapping[str, Any], sampler: str) -> Any:
    """The diffusers scheduler as `StableDiffusionPipeline` would run it."""
    kind, fixed = SAMPLERS[sampler]
    known = inspect.signature(kind).parameters
    config = {**scheduler_config, **AS_THE_PIPELINE, **fixed}
    return kind(**{name: value for name, value in config.items() if name in known})


def _probe(scheduler: Any, steps: int, eta: float) -> Plan | None:
    """The plan, or None where the scheduler divides by zero or runs past its last timestep."""
    with warnings.catch_warnings():  # numpy 2 says that the schedulers' np.array(tensor) will change; not ours to mend
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(steps)
    timesteps, init_sigma = scheduler.timesteps, float(scheduler.init_noise_sigma)
    if timesteps.max() >= scheduler.config.num_train_timesteps:  # "leading" spacing counts to timestep 1000 of 0…999
        return None
    chance = {"eta": eta} if "eta" in inspect.signature(scheduler.step).parameters else {}
    rows: list[tuple[float, ...]] = []
    draws = [1]
    for t, (alpha, sigma) in zip(timesteps, _levels(scheduler, timesteps), strict=True):
        c, moved, x0, noise = _step(scheduler, t, chance)
        a, b, m, n = _coefficients(moved, noise)
        p, q, *_ = _coefficients(x0, torch.zeros_like(noise))
        rows.append((float(t), c, a, b, m, n, p, q, alpha, sigma))
        draws.append(draws[-1] + bool(noise.any()))
    table = np.array(rows, dtype=np.float64)
    if not np.isfinite(table).all():
        return None
    table.setflags(write=False)
    return Plan(table, init_sigma, tuple(draws))


def _step(
    scheduler: Any, t: torch.Tensor, chance: Mapping[str, float]
) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One probing step: (c, x', x0, the noise that was drawn: zeros if none)."""
    x, out, h = (_Wide(column.view(1, 1, 1, -1)) for column in _BASIS[:, :NOISE].T)
    generator = torch.Generator().manual_seed(_SEED)
    untouched = generator.get_state()
    c = float(scheduler.scale_model_input(x, t).flatten()[X])
    if hasattr(scheduler, "model_outputs"):  # a multistep scheduler keeps its history to itself
        scheduler.model_outputs[-1] = h
    result = scheduler.step(out, t, x, generator=generator, **chance)
    x0 = result.get("pred_original_sample")
    x0 = scheduler.model_outputs[-1] if x0 is None else x0
    drawn = not torch.equal(generator.get_state(), untouched)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64) * drawn
    moved, x0, noise = (each.as_subclass(torch.Tensor).flatten() for each in (result["prev_sample"], x0, noise))
    return c, moved, x0, noise


def _coefficients(y: torch.Tensor, noise: torch.Tensor) -> tuple[float, float, float, float]:
    """Read (A, B, M, N) off the basis, and check by superposition at a second magnitude that there is nothing else."""
    n = y[NOISE] / noise[NOISE] if noise.any() else torch.zeros((), dtype=torch.float64)
    a, b, m = y[:NOISE] - n * noise[:NOISE]
    expected = _BASIS[:, :NOISE] @ torch.stack((a, b, m)) + n * noise
    scale = (_BASIS[:, :NOISE].abs() @ torch.stack((a, b, m)).abs()).clamp(min=1.0)
    if torch.isfinite(y).all() and ((y - expected).abs() > _TOLERANCE * scale).any():
        raise ValueError("This model's scheduler clips or thresholds its samples, which cannot be batched by step.")
    a, b, m, n = (0.0 if abs(value) < _NOTHING else value for value in (float(a), float(b), float(m), float(n)))
    return a, b, m, n


def _levels(scheduler: Any, timesteps: torch.Tensor) -> list[tuple[float, float]]:
    """(alpha, sigma) of the forward process at every timestep."""
    one, zero = (_Wide(torch.full((len(timesteps), 1), value, dtype=torch.float64)) for value in (1.0, 0.0))
    alpha, sigma = scheduler.add_noise(one, zero, timesteps), scheduler.add_noise(zero, one, timesteps)
    return list(zip(alpha.flatten().tolist(), sigma.flatten().tolist(), strict=True))


class _Wide(torch.Tensor):
    """A float64 tensor that stays one: Euler and DPM++ cast their sample to float32, which would round A by 1e-5.

    The scheduler's own tensors stay float32 on purpose: their rounding (1 - beta loses four digits) is in the parity.
    """

    def to(self, *_args: object, **_kwargs: object) -> _Wide:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self


_BASIS = torch.tensor(
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [700, 300, -500, 0], [-0.02, 0.5, 0.3, 0]],
    dtype=torch.float64,
)
