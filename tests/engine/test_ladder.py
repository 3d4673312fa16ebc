"""The ladder's rungs: few, evenly spaced in log-SNR, and always the last step."""

from __future__ import annotations

import numpy as np
import pytest

from engine.job import MAX_RUNGS
from engine.ladder import keeps_latent, rungs
from engine.plan import plan

ZERO_SNR = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "trailing",
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 20, 48])
def test_a_short_plan_is_all_rungs(steps: int) -> None:
    assert rungs(plan(ZERO_SNR, "ddim", steps)) == tuple(range(1, steps + 1))


@pytest.mark.parametrize("sampler", ["ddpm", "euler"])
@pytest.mark.parametrize("steps", [49, 250, 1000])
def test_a_long_plan_has_few_rungs_and_ends_with_the_last_step(sampler: str, steps: int) -> None:
    found = rungs(plan(ZERO_SNR, sampler, steps))
    assert 30 <= len(found) <= MAX_RUNGS
    assert found[-1] == steps
    assert list(found) == sorted(set(found))


@pytest.mark.parametrize(("first", "last"), [(0, 300), (700, 1000), (400, 800), (990, 1000), (400, 401)])
def test_only_the_steps_that_are_run_have_rungs(first: int, last: int) -> None:
    found = rungs(plan(ZERO_SNR, "ddpm", 1000), first, last)
    assert (found[0], found[-1]) == (first + 1, last)
    assert min(last - first, 30) <= len(found) <= MAX_RUNGS


def test_rungs_are_even_in_log_snr() -> None:
    table = plan(ZERO_SNR, "ddpm", 1000)
    inner = [step for step in rungs(table) if 100 < step < 900]
    alpha, sigma = table.table[[step - 1 for step in inner], 8], table.table[[step - 1 for step in inner], 9]
    gaps = np.diff(2 * np.log(alpha / sigma))
    assert gaps.max() / gaps.min() < 1.2


def test_every_fourth_rung_keeps_latents() -> None:
    assert [rung for rung in range(MAX_RUNGS) if keeps_latent(rung)] == list(range(3, 48, 4))
