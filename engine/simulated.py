"""A simulated device and model: a forward waits as long as a real one, but computes almost nothing.

So a worker runs for real in all but its network: claims, batches, snapshots, previews, results. A picture is a
bit-exact function of prompt, seed and every step, in any batch. So its hash shows whether a job that moved to another
worker was continued correctly.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.calibration import Calibration, knee
from engine.engine import BUCKETS
from engine.families.family import Conditions
from engine.job import Dtype, Guides, Lora, Recipe, Sampler
from engine.plan import TABLED, Plan, plan, samplers_for
from engine.shelf import Model

NAME = "simulated"
FIXED_MS = 1.0  # of a forward with any number of rows
STEPS = 100
SCHEDULE: dict[str, Any] = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "clip_sample": False, "steps_offset": 0,
}  # fmt: skip
CHANNELS, FACTOR = 4, 8
SPREAD = 0.25  # variance of its pictures around their text's colour
CONTRAST = 0.25  # share of full brightness per unit of a latent


class Simulated:
    """A `Family` with the ideal network for pictures of one colour per text, with normal noise on it.

    It uses only elementwise arithmetic, which rounds alike in a batch of any shape.
    """

    name, revision = NAME, "1"
    device = torch.device("cpu")
    size, multiple, max_pixels, tokens = 64, FACTOR, 128 * 128, 77
    guides: Guides = "rows"
    guidance, interval = 3.0, (0.0, 1.0)
    enlargement, upscaler = 1, ""
    samplers: tuple[Sampler, ...] = tuple(name for name in samplers_for(SCHEDULE) if name in TABLED)

    def __init__(self, row_ms: float) -> None:
        self._row_ms = row_ms
        betas = np.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=np.float64) ** 2
        kept = np.cumprod(1.0 - betas)
        self._signal = torch.from_numpy(np.sqrt(kept).astype(np.float32))
        self._noise = torch.from_numpy(np.sqrt(1.0 - kept).astype(np.float32))

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        return plan(SCHEDULE, sampler, steps, eta)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return CHANNELS, height // FACTOR, width // FACTOR

    def condition(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditions:
        colour = np.frombuffer(hashlib.sha256(text.encode()).digest()[:CHANNELS], dtype=np.uint8)
        return (torch.from_numpy(colour.astype(np.float32) / 127.5 - 1.0),)

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, texts: Conditions, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        """Return the expected noise in `x`. It sleeps like a busy device, and holds no lock meanwhile."""
        time.sleep(forward_ms(len(x), self._row_ms) / 1000.0)
        at = t.round().long().clamp(0, len(self._signal) - 1)
        signal, noise = self._signal[at].view(-1, 1, 1, 1), self._noise[at].view(-1, 1, 1, 1)
        colour = texts[0].view(-1, CHANNELS, 1, 1)
        return noise * (x - signal * colour) / (signal * signal * SPREAD + noise * noise)

    def decode(self, latents: torch.Tensor) -> Image.Image:
        light = (latents[:3] * CONTRAST + 0.5).clamp(0, 1) * 255
        pixels = light.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels)
        return picture.resize((picture.width * FACTOR, picture.height * FACTOR), Image.Resampling.NEAREST)

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        small = picture.convert("RGB").resize((picture.width // FACTOR, picture.height // FACTOR), Image.Resampling.BOX)
        light = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)
        return torch.cat([(light - 0.5) / CONTRAST, torch.zeros_like(light[:1])])


def forward_ms(rows: int, row_ms: float) -> float:
    """Return the simulated milliseconds of a forward with this many rows."""
    return FIXED_MS + rows * row_ms


def calibration(row_ms: float, rows: int) -> Calibration:
    """Return the calibration that the worker announces: given, not measured.

    `rows`: the most rows of a forward; fewer if a calibration would find that more gain nothing.
    """
    bucket_ms = {size: forward_ms(size, row_ms) for size in (*(each for each in BUCKETS if each < rows), rows)}
    rows = knee(bucket_ms)
    return Calibration(
        dtype="float32", rows=rows, steps=STEPS, sampler="ddpm", row_ms=bucket_ms[rows] / rows, encode_ms=0.1,
        decode_ms=1.0, bucket_ms=bucket_ms, dtype_ms={"float32": bucket_ms[rows]},
    )  # fmt: skip


def offered(family: Simulated, found: Calibration) -> Model:
    """Return the model for the model cache. It takes no memory to speak of."""
    return Model(NAME, 1, found.warm(family), lambda told: family, found.warm)
