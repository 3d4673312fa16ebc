"""The keyframes of a ladder: few, evenly spaced in log-SNR, and always the last step."""

from __future__ import annotations

import numpy as np
import pytest

from engine.batching.trajectory import has_latents, keyframe_steps
from engine.contract import MAX_KEYFRAMES
from engine.sampling import plan

ZERO_SNR = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}


@pytest.mark.parametrize("steps", [1, 2, 20, 48])
def test_a_short_plan_keeps_every_step_as_a_keyframe(steps: int) -> None:
    assert keyframe_steps(plan(ZERO_SNR, "ddim", steps)) == tuple(range(1, steps + 1))


@pytest.mark.parametrize("sampler", ["ddpm", "euler"])
@pytest.mark.parametrize("steps", [49, 250, 1000])
def test_a_long_plan_has_few_keyframes_and_ends_with_the_last_step(sampler: str, steps: int) -> None:
    keyframes = keyframe_steps(plan(ZERO_SNR, sampler, steps))
    assert 30 <= len(keyframes) <= MAX_KEYFRAMES
    assert keyframes[-1] == steps
    assert list(keyframes) == sorted(set(keyframes))


@pytest.mark.parametrize(("first", "last"), [(0, 300), (700, 1000), (400, 800), (990, 1000), (400, 401)])
def test_keyframes_cover_only_the_steps_that_run(first: int, last: int) -> None:
    keyframes = keyframe_steps(plan(ZERO_SNR, "ddpm", 1000), first, last)
    assert (keyframes[0], keyframes[-1]) == (first + 1, last)
    assert min(last - first, 30) <= len(keyframes) <= MAX_KEYFRAMES


def test_keyframes_are_evenly_spaced_in_log_snr() -> None:
    table = plan(ZERO_SNR, "ddpm", 1000)
    inner = [step for step in keyframe_steps(table) if 100 < step < 900]
    alpha = table.table[[step - 1 for step in inner], 8]
    sigma = table.table[[step - 1 for step in inner], 9]
    gaps = np.diff(2 * np.log(alpha / sigma))
    assert gaps.max() / gaps.min() < 1.2


def test_every_fourth_keyframe_keeps_latents() -> None:
    assert [keyframe_index for keyframe_index in range(MAX_KEYFRAMES) if has_latents(keyframe_index)] == list(
        range(3, 48, 4)
    )
