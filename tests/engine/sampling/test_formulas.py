"""The probed rows of DDPM and DDIM are the formulas of their papers, which `engine.sampling.probe` writes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from engine.sampling import COLUMNS
from engine.sampling.probe import probe

CONFIG: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "timestep_spacing": "leading",
}
TOLERANCE = 1e-9


def read_rows(scheduler: Any, steps: int, eta: float = 0.0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return the probed columns, and the cumulative alpha at each step and after it: `[steps]`."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # else 1-ᾱ is rounded in float32 at the last steps
    cumulative = scheduler.alphas_cumprod.numpy()
    after_the_last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    table = probe(scheduler, steps, eta)
    assert table is not None
    columns: dict[str, np.ndarray] = {name: table.table[:, column] for column, name in enumerate(COLUMNS)}
    times = columns["t"].astype(int)
    earlier = times - 1000 // steps
    return columns, cumulative[times], np.where(earlier >= 0, cumulative[earlier.clip(0)], after_the_last)


@pytest.mark.parametrize("steps", [1000, 250, 20])
def test_a_row_of_ddpm_is_the_posterior(steps: int) -> None:
    row, now, after = read_rows(DDPMScheduler(**CONFIG), steps)
    p, q = 1 / np.sqrt(now), -np.sqrt(1 - now) / np.sqrt(now)
    alpha = now / after
    beta = 1 - alpha
    share_of_x0 = np.sqrt(after) * beta / (1 - now)
    share_of_x = np.sqrt(alpha) * (1 - after) / (1 - now)
    variance = (1 - after) / (1 - now) * beta
    variance[-1] = 0.0  # the last step draws nothing
    expected = {"A": share_of_x0 * p + share_of_x, "B": share_of_x0 * q, "M": 0 * p, "N": np.sqrt(variance)}
    for name, values in (expected | {"P": p, "Q": q}).items():
        np.testing.assert_allclose(row[name], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1000, 50])
def test_a_row_of_ddim_is_its_step(steps: int, eta: float) -> None:
    row, now, after = read_rows(DDIMScheduler(**CONFIG), steps, eta)
    p, q = 1 / np.sqrt(now), -np.sqrt(1 - now) / np.sqrt(now)
    sigma = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
    direction = np.sqrt((1 - after - sigma**2).clip(0))
    expected = {"A": np.sqrt(after) * p, "B": np.sqrt(after) * q + direction, "M": 0 * p, "N": sigma}
    for name, values in (expected | {"P": p, "Q": q}).items():
        np.testing.assert_allclose(row[name], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
