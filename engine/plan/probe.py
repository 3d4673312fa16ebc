"""Finds a scheduler's coefficients by probing it: one step on a basis, at every step. No formula is copied.

    network input = c·x        x0 = P·x + Q·out        x' = A·x + B·out + M·h + N·noise        h' = x0

It tests at every step that a step does nothing else, at three magnitudes and with other values each time. A clipping or
thresholding step fails for the magnitudes; one that remembers more than the previous x0 fails for the values.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from engine.plan.timing import Timing, set_timesteps

COLUMNS = ("t", "c", "A", "B", "M", "N", "P", "Q", "alpha", "sigma")

X, OUT, HISTORY, NOISE, AGAIN = range(5)  # rows of the basis: one of each, noise twice, then the tests
MAGNITUDES = (0.01, 300.0, 1e6)  # Euler's latents at zero terminal SNR reach 2e4; beyond, no picture results
_SEED = 7
_TOLERANCE = 1e-9
_NOTHING = 1e-13  # residue of subtracting N·noise if a coefficient is zero

CLIPS = "This model's scheduler clips or thresholds its samples, which cannot be batched by step."
BENDS = "This sampler is not linear or remembers more than one step, which cannot be batched by step."
TWICE = "This sampler takes more than one evaluation of the network a step, which cannot be batched by step."


Asked = tuple[torch.Tensor, torch.Tensor | None, bool]
Asking = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Asked]


class NotTabled(ValueError):
    """The sampler has no table, so the image needs an unmodified pipeline. The text is a sentence."""


@dataclass(frozen=True)
class Plan:
    """`table[k]` holds the coefficients of step `k`, in the order of `COLUMNS` (float64, `[steps, 10]`).

    `alpha, sigma` are the noise level at which step `k` predicts: x = alpha·x0 + sigma·eps. `init_sigma` scales the
    first draw. `draws[k]` is how many noise draws come before step `k`'s own, the initial latents being the first;
    `draws[steps]` is their total. A draw may count but add nothing (Euler ancestral's last), and a step may draw none
    (LCM's and DDPM's last).
    """

    table: np.ndarray
    init_sigma: float
    draws: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.table)

    @property
    def keeps_history(self) -> bool:
        """Whether it is a multistep sampler: the previous x0 enters the next step."""
        return bool(self.table[:, COLUMNS.index("M")].any())

    def draws_noise(self, k: int) -> bool:
        return self.draws[k + 1] > self.draws[k]

    def level(self, k: int) -> tuple[float, float]:
        """Return (alpha, sigma) before step `k`; after the last step there is no noise."""
        if k >= self.steps:
            return 1.0, 0.0
        alpha, sigma = self.table[k, [COLUMNS.index("alpha"), COLUMNS.index("sigma")]]
        return float(alpha), float(sigma)

    def begun(self, first: int) -> Plan:
        """Return the plan of an image that starts at step `first` without history; it counts noise from there."""
        return self.alone(first).drawn(first, 1) if first else self

    def alone(self, first: int) -> Plan:
        """Return the plan without the history that a multistep sampler uses at step `first`.

        That step is of first order, as if the previous x0 had been the same: M·h with h = x0 = P·x + Q·out.
        """
        table = self.table.copy()
        a, b, m, p, q = (COLUMNS.index(name) for name in "ABMPQ")
        table[first, a] += table[first, m] * table[first, p]
        table[first, b] += table[first, m] * table[first, q]
        table[first, m] = 0.0
        table.setflags(write=False)
        return replace(self, table=table)

    def drawn(self, first: int, before: int) -> Plan:
        """Return the plan with `before` noise draws before step `first`."""
        return replace(self, draws=tuple(before + max(0, count - self.draws[first]) for count in self.draws))


def probe(scheduler: Any, steps: int, eta: float = 0.0, timing: Timing = Timing()) -> Plan | None:
    """Return the plan, or None if the scheduler divides by zero. `scheduler` cannot be used afterwards.

    Raises `NotTabled`, `Mistimed`, and any error of diffusers.
    """
    set_timesteps(scheduler, steps, timing)
    if len(scheduler.timesteps) != steps:
        raise NotTabled(TWICE)
    init_sigma, bases = float(getattr(scheduler, "init_noise_sigma", 1.0)), _bases(steps)
    answers = _answers(scheduler, bases, eta)
    clips = scheduler.config.get("thresholding") or scheduler.config.get("clip_sample")
    otherwise, none = CLIPS if clips else BENDS, [False] * steps
    inputs, estimates = (_coefficients(bases, each, none, otherwise) for each in (answers.inputs, answers.estimates))
    onward = _coefficients(bases, answers.onward, answers.drawn, otherwise)
    if estimates[:, HISTORY:].nan_to_num().any():
        raise NotTabled(BENDS)
    times = scheduler.timesteps[:, None].double()
    columns = (times, inputs[:, :OUT], onward, estimates[:, :HISTORY], _flat(answers.levels))
    table = torch.cat(columns, dim=1).numpy()
    if clips and not np.isfinite(table).all():
        raise NotTabled(CLIPS)  # clipping would hide this and make a finite picture
    table.setflags(write=False)
    return Plan(table, init_sigma, tuple(accumulate(answers.drawn, initial=1))) if np.isfinite(table).all() else None


class _Answers(NamedTuple):
    """Results of each step on the basis: network input, x', x0, whether it drew noise, and (alpha, sigma)."""

    inputs: list[torch.Tensor]
    onward: list[torch.Tensor]
    estimates: list[torch.Tensor]
    drawn: list[bool]
    levels: list[torch.Tensor]


def _answers(scheduler: Any, bases: torch.Tensor, eta: float) -> _Answers:
    ask, untouched, answers = _asking(scheduler, eta), copy.copy(scheduler), _Answers([], [], [], [], [])
    for k, (t, basis) in enumerate(zip(scheduler.timesteps, bases, strict=True)):
        x, out, h = (Wide(column.view(-1, 1, 1, 1)) for column in basis.T)
        answers.levels.append(_level(scheduler, t))
        answers.inputs.append(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x)
        onward, x0, drew = ask(t, x, out, h)
        answers.onward.append(onward)
        answers.estimates.append(_straight(untouched, k, t, x, out) if x0 is None else x0)
        answers.drawn.append(drew)
    return answers


def _asking(scheduler: Any, eta: float) -> Asking:
    """Return a function that probes one step: t, x, out, h → (x', x0 or None, whether noise was drawn)."""
    taken, generator = inspect.signature(scheduler.step).parameters, torch.Generator()
    extra: dict[str, Any] = {"eta": eta} if "eta" in taken else {}
    always = str(scheduler.config.get("algorithm_type")).startswith("sde")
    if always:  # DPM++ SDE draws at every step, in float32, which would round N
        extra["variance_noise"] = Wide(_noise(AGAIN + 1 + len(MAGNITUDES)))
    elif "generator" in taken:
        extra["generator"] = generator

    def ask(t: torch.Tensor, x: torch.Tensor, out: torch.Tensor, h: torch.Tensor) -> Asked:
        untouched = generator.manual_seed(_SEED).get_state()
        if hasattr(scheduler, "model_outputs"):  # a multistep scheduler stores its history
            scheduler.model_outputs[-1] = h
        result = scheduler.step(out, t, x, **extra)
        x0 = result.get("pred_original_sample", result.get("denoised"))
        if x0 is None and hasattr(scheduler, "model_outputs"):
            x0 = scheduler.model_outputs[-1]
        return result["prev_sample"], x0, always or not torch.equal(generator.get_state(), untouched)

    return ask


def _straight(untouched: Any, k: int, t: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Return the x0 of a scheduler that reports none: a step from `k` straight to its last noise level."""
    if not isinstance(untouched, FlowMatchEulerDiscreteScheduler):
        raise NotTabled("This sampler does not report its x0, the estimate of the finished picture.")
    scheduler: Any = copy.copy(untouched)
    scheduler.sigmas = torch.cat([scheduler.sigmas[: k + 1], scheduler.sigmas[-1:], scheduler.sigmas[k + 2 :]])
    scheduler.set_begin_index(k)
    return scheduler.step(out, t, x, generator=torch.Generator().manual_seed(_SEED))["prev_sample"]


def _coefficients(bases: torch.Tensor, results: list[torch.Tensor], drawn: list[bool], otherwise: str) -> torch.Tensor:
    """Return (A, B, M, N) of every step from the basis, after superposition has shown that there is nothing else.

    Raises `NotTabled` with the sentence `otherwise`. Non-finite values stay NaN.
    """
    y = _flat(results)
    finite = y.isfinite().all(dim=1)
    noise = _noise(y.shape[1]).flatten() * torch.tensor(drawn)[:, None]
    n = (y[:, NOISE] / noise[:, NOISE]).where(torch.tensor(drawn), 0.0)[:, None]
    found = (y - n * noise)[:, :NOISE]
    expected = torch.einsum("srb,sb->sr", bases, found) + n * noise
    scale = torch.einsum("srb,sb->sr", bases.abs(), found.abs()) + (n * noise).abs()
    if ((y - expected).abs() > _TOLERANCE * scale + _NOTHING)[finite].any():
        raise NotTabled(otherwise)
    coefficients = torch.cat([found, n], dim=1)
    return coefficients.where(coefficients.abs() >= _NOTHING, 0.0).where(finite[:, None], math.nan)


def _flat(results: list[torch.Tensor]) -> torch.Tensor:
    """Return the steps' results as `[steps, …]`."""
    return torch.stack([result.as_subclass(torch.Tensor).flatten().double() for result in results])


def _noise(rows: int) -> torch.Tensor:
    return torch.randn(rows, 1, 1, 1, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)


def _level(scheduler: Any, t: torch.Tensor) -> torch.Tensor:
    """Return (alpha, sigma) of the forward process at the next step."""
    x0, noise = (Wide(column.view(-1, 1)) for column in torch.eye(2, dtype=torch.float64))
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(x0, noise, t.expand(2))
    return scheduler.scale_noise(x0, t.expand(2), noise)


def _bases(steps: int) -> torch.Tensor:
    """Return `[steps, rows, 3]`: x, out and h of each row. The tests differ per step, so no memory can fit them."""
    fixed = torch.eye(AGAIN + 1, HISTORY + 1, dtype=torch.float64).expand(steps, -1, -1)
    some = torch.rand(steps, len(MAGNITUDES), 3, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
    signs = torch.tensor([[1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    tests = (some + 0.5) * signs * torch.tensor(MAGNITUDES, dtype=torch.float64).view(-1, 1)
    return torch.cat([fixed, tests], dim=1)


class Wide(torch.Tensor):
    """A float64 tensor that cannot be cast: Euler and DPM++ cast their sample to float32, which would round A by 1e-5.

    The scheduler's own tensors stay float32 on purpose: parity includes their rounding (1 - beta loses four digits).
    """

    def to(self, *_args: object, **_kwargs: object) -> Wide:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self
