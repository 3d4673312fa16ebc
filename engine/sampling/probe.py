"""Finds a scheduler's coefficients by probing it: one step on a basis, at every step. No formula is copied.

    network input = c·x        x0 = P·x + Q·out        x' = A·x + B·out + M·h + N·noise        h' = x0

At every step it checks that the result is exactly this linear formula, at three magnitudes and with other values each
time. A clipping or thresholding step fails for the magnitudes; one that remembers more than the previous x0 fails for
the values.

What it finds for a network that predicts the noise, so out = eps, on the step from t to the earlier s. Both samplers
guess the clean picture first, with ᾱ as the cumulative product of alphas (Ho et al. 2020, "DDPM", eq. 15):

    x0 = (x - √(1-ᾱt)·eps) / √ᾱt                              P = 1/√ᾱt    Q = -√(1-ᾱt)/√ᾱt

**DDPM**, the posterior q(xs | xt, x0) (eq. 6 and 7), with α = ᾱt/ᾱs and β = 1-α:

    mean = √ᾱs·β/(1-ᾱt)·x0 + √α·(1-ᾱs)/(1-ᾱt)·x               variance = (1-ᾱs)/(1-ᾱt)·β

    A = √ᾱs·β/(1-ᾱt)·P + √α·(1-ᾱs)/(1-ᾱt)    B = √ᾱs·β/(1-ᾱt)·Q    N = √variance    M = 0

**DDIM** (Song et al. 2021, eq. 12, with σ of eq. 16; η = 0 draws no noise, η = 1 is DDPM):

    x' = √ᾱs·x0 + √(1-ᾱs-σ²)·eps + σ·noise                    σ = η·√((1-ᾱs)/(1-ᾱt))·√(1-ᾱt/ᾱs)

    A = √ᾱs·P    B = √ᾱs·Q + √(1-ᾱs-σ²)    N = σ    M = 0

`tests/engine/sampling/test_formulas.py` compares the rows with these lines.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from engine.sampling.samplers import TimestepOptions, set_timesteps
from engine.sampling.table import Plan

X, OUT, HISTORY, NOISE, NOISE_TWICE = range(5)  # rows 0–2: unit x, out, h; rows 3–4: noise only; then the test rows
MAGNITUDES = (0.01, 300.0, 1e6)  # Euler's latents at zero terminal SNR reach 2e4; beyond, no picture results
_SEED = 7
_TOLERANCE = 1e-9
_RESIDUE = 1e-13  # residue of subtracting N·noise if a coefficient is zero

CLIPS_SAMPLES = "This model's scheduler clips or thresholds its samples, which cannot be batched by step."
NOT_LINEAR = "This sampler is not linear or remembers more than one step, which cannot be batched by step."
SEVERAL_EVALUATIONS = (
    "This sampler takes more than one evaluation of the network a step, which cannot be batched by step."
)


StepResult = tuple[torch.Tensor, torch.Tensor | None, bool]
StepProbe = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], StepResult]


class NotTabled(ValueError):
    """The sampler has no table, so the image needs an unmodified pipeline. The text is a sentence."""


def probe(scheduler: Any, steps: int, eta: float = 0.0, timing: TimestepOptions = TimestepOptions()) -> Plan | None:
    """Return the plan, or None if the scheduler divides by zero. `scheduler` cannot be used afterwards.

    Raises `NotTabled`, `TimestepError`, and any error of diffusers.
    """
    set_timesteps(scheduler, steps, timing)
    if len(scheduler.timesteps) != steps:
        raise NotTabled(SEVERAL_EVALUATIONS)
    init_sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
    bases = _bases(steps)
    step_results = _probe_steps(scheduler, bases, eta)
    is_clipping = scheduler.config.get("thresholding") or scheduler.config.get("clip_sample")
    reason = CLIPS_SAMPLES if is_clipping else NOT_LINEAR
    no_draws = [False] * steps
    input_coefficients, x0_coefficients = (
        _coefficients(bases, results, no_draws, reason) for results in (step_results.network_inputs, step_results.x0s)
    )
    x_coefficients = _coefficients(bases, step_results.next_samples, step_results.drew_noise, reason)
    if x0_coefficients[:, HISTORY:].nan_to_num().any():
        raise NotTabled(NOT_LINEAR)
    timesteps = scheduler.timesteps[:, None].double()
    columns = (
        timesteps,
        input_coefficients[:, :OUT],
        x_coefficients,
        x0_coefficients[:, :HISTORY],
        _flatten_results(step_results.noise_levels),
    )
    table = torch.cat(columns, dim=1).numpy()
    if is_clipping and not np.isfinite(table).all():
        raise NotTabled(CLIPS_SAMPLES)  # clipping would hide this and make a finite picture
    table.setflags(write=False)
    return (
        Plan(table, init_sigma, tuple(accumulate(step_results.drew_noise, initial=1)), range(steps + 1))
        if np.isfinite(table).all()
        else None
    )


class _ProbeResults(NamedTuple):
    """Results of each step on the basis: network input, x', x0, whether it drew noise, and (alpha, sigma)."""

    network_inputs: list[torch.Tensor]
    next_samples: list[torch.Tensor]
    x0s: list[torch.Tensor]
    drew_noise: list[bool]
    noise_levels: list[torch.Tensor]


def _probe_steps(scheduler: Any, bases: torch.Tensor, eta: float) -> _ProbeResults:
    probe_step = _build_step_probe(scheduler, eta)
    scheduler_before = copy.copy(scheduler)
    step_results = _ProbeResults([], [], [], [], [])
    for k, (t, basis) in enumerate(zip(scheduler.timesteps, bases, strict=True)):
        x, out, h = (UncastableTensor(column.view(-1, 1, 1, 1)) for column in basis.T)
        step_results.noise_levels.append(_noise_level_at(scheduler, t))
        step_results.network_inputs.append(
            scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        )
        next_sample, x0, drew = probe_step(t, x, out, h)
        step_results.next_samples.append(next_sample)
        step_results.x0s.append(_step_to_x0(scheduler_before, k, t, x, out) if x0 is None else x0)
        step_results.drew_noise.append(drew)
    return step_results


def _build_step_probe(scheduler: Any, eta: float) -> StepProbe:
    """Return a function that probes one step: t, x, out, h → (x', x0 or None, whether noise was drawn)."""
    parameters = inspect.signature(scheduler.step).parameters
    generator = torch.Generator()
    step_arguments: dict[str, Any] = {"eta": eta} if "eta" in parameters else {}
    is_always_noisy = str(scheduler.config.get("algorithm_type")).startswith("sde")
    if is_always_noisy:  # DPM++ SDE draws at every step, in float32, which would round N
        step_arguments["variance_noise"] = UncastableTensor(_noise(NOISE_TWICE + 1 + len(MAGNITUDES)))
    elif "generator" in parameters:
        step_arguments["generator"] = generator

    def probe_step(t: torch.Tensor, x: torch.Tensor, out: torch.Tensor, h: torch.Tensor) -> StepResult:
        state_before = generator.manual_seed(_SEED).get_state()
        if hasattr(scheduler, "model_outputs"):  # a multistep scheduler stores its history
            scheduler.model_outputs[-1] = h
        result = scheduler.step(out, t, x, **step_arguments)
        x0 = result.get("pred_original_sample", result.get("denoised"))
        if x0 is None and hasattr(scheduler, "model_outputs"):
            x0 = scheduler.model_outputs[-1]
        return result["prev_sample"], x0, is_always_noisy or not torch.equal(generator.get_state(), state_before)

    return probe_step


def _step_to_x0(scheduler_before: Any, k: int, t: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Return the x0 of a scheduler that reports none: a step from `k` straight to its last noise level."""
    if not isinstance(scheduler_before, FlowMatchEulerDiscreteScheduler):
        raise NotTabled("This sampler does not report its x0, the estimate of the finished picture.")
    scheduler: Any = copy.copy(scheduler_before)
    scheduler.sigmas = torch.cat([scheduler.sigmas[: k + 1], scheduler.sigmas[-1:], scheduler.sigmas[k + 2 :]])
    scheduler.set_begin_index(k)
    return scheduler.step(out, t, x, generator=torch.Generator().manual_seed(_SEED))["prev_sample"]


def _coefficients(
    bases: torch.Tensor, results: list[torch.Tensor], drew_noise: list[bool], reason: str
) -> torch.Tensor:
    """Return (A, B, M, N) of every step from the basis, after superposition has shown that there is nothing else.

    Raises `NotTabled` with the sentence `reason`. Non-finite values stay NaN.
    """
    y = _flatten_results(results)
    is_finite = y.isfinite().all(dim=1)
    noise = _noise(y.shape[1]).flatten() * torch.tensor(drew_noise)[:, None]
    noise_coefficient = (y[:, NOISE] / noise[:, NOISE]).where(torch.tensor(drew_noise), 0.0)[:, None]
    solved = (y - noise_coefficient * noise)[:, :NOISE]
    expected = torch.einsum("srb,sb->sr", bases, solved) + noise_coefficient * noise
    scale = torch.einsum("srb,sb->sr", bases.abs(), solved.abs()) + (noise_coefficient * noise).abs()
    if ((y - expected).abs() > _TOLERANCE * scale + _RESIDUE)[is_finite].any():
        raise NotTabled(reason)
    coefficients = torch.cat([solved, noise_coefficient], dim=1)
    return coefficients.where(coefficients.abs() >= _RESIDUE, 0.0).where(is_finite[:, None], math.nan)


def _flatten_results(results: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([result.as_subclass(torch.Tensor).flatten().double() for result in results])


def _noise(rows: int) -> torch.Tensor:
    return torch.randn(rows, 1, 1, 1, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)


def _noise_level_at(scheduler: Any, t: torch.Tensor) -> torch.Tensor:
    """Return (alpha, sigma) of the forward process at the next step."""
    x0, noise = (UncastableTensor(column.view(-1, 1)) for column in torch.eye(2, dtype=torch.float64))
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(x0, noise, t.expand(2))
    return scheduler.scale_noise(x0, t.expand(2), noise)


def _bases(steps: int) -> torch.Tensor:
    """Return `[steps, rows, 3]`: x, out and h of each row. The test rows differ per step.

    So a scheduler that remembers earlier steps fails the test.
    """
    basis_rows = torch.eye(NOISE_TWICE + 1, HISTORY + 1, dtype=torch.float64).expand(steps, -1, -1)
    test_values = torch.rand(
        steps, len(MAGNITUDES), 3, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64
    )
    signs = torch.tensor([[1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    tests = (test_values + 0.5) * signs * torch.tensor(MAGNITUDES, dtype=torch.float64).view(-1, 1)
    return torch.cat([basis_rows, tests], dim=1)


class UncastableTensor(torch.Tensor):
    """A float64 tensor that cannot be cast: Euler and DPM++ cast their sample to float32, which would round A by 1e-5.

    The scheduler's own tensors stay float32 on purpose: parity includes their rounding (1 - beta loses four digits).
    """

    def to(self, *_args: object, **_kwargs: object) -> UncastableTensor:
        return self
