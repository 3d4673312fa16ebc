"""Plans against the schedulers of diffusers themselves, over whole trajectories with an affine recorded network."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from engine.families.embedded import WEIGHTS
from engine.plan import SAMPLERS, Plan, build_scheduler, plan

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

EMBEDDED: dict[str, Any] = json.loads((WEIGHTS / "scheduler" / "scheduler_config.json").read_text())
EPSILON = {**EMBEDDED, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
LEADING = {**EPSILON, "timestep_spacing": "leading"}
SHAPE = (1, 4, 4, 4)


def recorded(x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """An affine network: of its input, of the position and of the timestep."""
    return 0.3 * x + 0.1 * torch.sin(torch.arange(x.numel()) * 0.1).view(x.shape) + float(t) / 2000


def by_diffusers(config: dict[str, Any], sampler: str, steps: int, eta: float) -> list[torch.Tensor]:
    scheduler = build_scheduler(config, sampler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    trajectory = []
    for t in scheduler.timesteps:
        out = recorded(scheduler.scale_model_input(x, t), t)
        extra = {"eta": eta} if sampler == "ddim" else {}
        x = scheduler.step(out, t, x, generator=generator, **extra).prev_sample
        trajectory.append(x)
    return trajectory


def by_plan(table: Plan) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SHAPE, generator=generator) * table.init_sigma
    h, trajectory = torch.zeros(SHAPE), []
    for k in range(table.steps):
        t, c, a, b, m, n, p, q, _, _ = table.table[k].tolist()
        noise = torch.randn(SHAPE, generator=generator) if table.draws_noise(k) else torch.zeros(SHAPE)
        out = recorded(c * x, t)
        x, h = a * x + b * out + m * h + n * noise, p * x + q * out
        trajectory.append(x)
    return trajectory


@pytest.mark.parametrize("steps", [1, 2, 20, 50, 1000])
@pytest.mark.parametrize("config", [EMBEDDED, EPSILON], ids=["v, zero terminal SNR", "epsilon"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0), ("ddim", 0), ("ddim", 0.6), ("euler", 0), ("dpmpp_2m", 0)])
def test_a_plan_follows_the_scheduler_over_the_whole_trajectory(
    sampler: str, eta: float, config: dict[str, Any], steps: int
) -> None:
    # At zero terminal SNR Euler starts at sigma 4096, where diffusers loses digits in float32 (x + (x - x0)·dt/sigma
    # cancels); the table does not, so at few steps the two differ by the rounding of diffusers.
    tolerance = 4e-4 if sampler == "euler" and config is EMBEDDED and steps <= 2 else 1e-5
    reference, ours = by_diffusers(config, sampler, steps, eta), by_plan(plan(config, sampler, steps, eta))
    assert len(ours) == len(reference)
    for expected, got in zip(reference, ours, strict=True):
        assert float((got - expected).abs().max() / expected.abs().max()) <= tolerance


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_leading_spacing_with_the_pipelines_offset(sampler: str) -> None:
    reference, ours = by_diffusers(LEADING, sampler, 20, 0.0), by_plan(plan(LEADING, sampler, 20))
    torch.testing.assert_close(ours[-1], reference[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [3, 7, 16, 50, 111])
def test_full_noise_at_zero_terminal_snr_never_divides_by_zero(steps: int) -> None:
    table = plan(EMBEDDED, "ddim", steps, 1.0)  # diffusers itself returns NaN at these
    assert abs(table.table).max() < 1e4


def test_the_noise_level_is_that_of_the_forward_process() -> None:
    table = plan(EPSILON, "ddpm", 1000).table
    alpha, sigma = table[:, 8], table[:, 9]
    assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-6)
    assert alpha[0] < 0.07
    assert alpha[-1] > 0.999


def test_only_a_multistep_sampler_keeps_history() -> None:
    assert {name: plan(EMBEDDED, name, 20).keeps_history for name in SAMPLERS} == {
        "ddpm": False, "ddim": False, "euler": False, "dpmpp_2m": True,
    }  # fmt: skip


def test_draws_are_counted_as_the_scheduler_draws() -> None:
    assert plan(EMBEDDED, "ddim", 20, 0.0).draws == (1,) * 21
    assert plan(EMBEDDED, "ddim", 20, 0.5).draws == tuple(range(1, 22))
    assert plan(EMBEDDED, "ddpm", 1000).draws[-1] == 1000  # none at timestep 0, one for the initial latents


def test_clipping_is_refused() -> None:
    with pytest.raises(ValueError, match="clips or thresholds"):
        plan({**EPSILON, "thresholding": True}, "ddpm", 10)


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot take 1000 steps"):
        plan(LEADING, "ddpm", 1000)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="no sampler called heun"):
        plan(EMBEDDED, "heun", 10)


def test_plans_are_cached_and_cannot_be_written_to() -> None:
    table = plan(EMBEDDED, "ddpm", 20)
    assert plan(dict(EMBEDDED), "ddpm", 20) is table
    with pytest.raises(ValueError, match="read-only"):
        table.table[0, 0] = 1.0
