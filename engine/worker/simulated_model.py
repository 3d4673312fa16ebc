"""A simulated device and model: a forward waits as long as a real one, but computes almost nothing.

So a worker runs for real in all but its network: claims, batches, snapshots, previews, results. A picture is a
bit-exact function of prompt, seed and every step, in any batch. So its hash shows whether a job that moved to another
worker continued correctly.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.calibration.calibration import Calibration, find_knee
from engine.calibration.measurement import TIMED_BUCKETS
from engine.contract import Dtype, GuidanceKind, Lora, Recipe, Sampler
from engine.model_cache.cache import ModelEntry
from engine.models.family import Conditioning
from engine.sampling import TABLED, Plan, plan, samplers_for

NAME = "simulated"
FORWARD_FIXED_MS = 1.0  # of a forward with any number of rows
DEFAULT_STEPS = 100
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 0,
}
CHANNELS = 4
SPATIAL_FACTOR = 8
PICTURE_VARIANCE = 0.25  # variance of its pictures around their text's colour
LATENT_CONTRAST = 0.25  # share of full brightness per unit of a latent


class SimulatedModel:
    """A `Family` with the ideal network for pictures of one colour per text, with normal noise on it.

    It uses only elementwise arithmetic, which rounds alike in a batch of any shape.
    """

    name = NAME
    revision = "1"
    device = torch.device("cpu")
    size = 64
    multiple = SPATIAL_FACTOR
    max_pixels = 128 * 128
    tokens = 77
    guides: GuidanceKind = "rows"
    guidance = 3.0
    interval = (0.0, 1.0)
    upscale_factor = 1
    upscaler = ""
    samplers: tuple[Sampler, ...] = tuple(name for name in samplers_for(SCHEDULER_CONFIG) if name in TABLED)

    def __init__(self, row_ms: float) -> None:
        self._row_ms = row_ms
        betas = (
            np.linspace(
                SCHEDULER_CONFIG["beta_start"] ** 0.5, SCHEDULER_CONFIG["beta_end"] ** 0.5, 1000, dtype=np.float64
            )
            ** 2
        )
        alphas_cumprod = np.cumprod(1.0 - betas)
        self._signal_scale = torch.from_numpy(np.sqrt(alphas_cumprod).astype(np.float32))
        self._noise_scale = torch.from_numpy(np.sqrt(1.0 - alphas_cumprod).astype(np.float32))

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        return plan(SCHEDULER_CONFIG, sampler, steps, eta)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return CHANNELS, height // SPATIAL_FACTOR, width // SPATIAL_FACTOR

    def encode_conditioning(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditioning:
        colour = np.frombuffer(hashlib.sha256(text.encode()).digest()[:CHANNELS], dtype=np.uint8)
        return (torch.from_numpy(colour.astype(np.float32) / 127.5 - 1.0),)

    def denoise(
        self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, dtype: Dtype, loras: tuple[Lora, ...] = ()
    ) -> torch.Tensor:
        """Return the expected noise in `x`. It sleeps like a busy device, and holds no lock meanwhile."""
        time.sleep(forward_ms(len(x), self._row_ms) / 1000.0)
        timestep_index = t.round().long().clamp(0, len(self._signal_scale) - 1)
        signal = self._signal_scale[timestep_index].view(-1, 1, 1, 1)
        noise = self._noise_scale[timestep_index].view(-1, 1, 1, 1)
        colour = conditioning[0].view(-1, CHANNELS, 1, 1)
        return noise * (x - signal * colour) / (signal * signal * PICTURE_VARIANCE + noise * noise)

    def decode(self, latents: torch.Tensor) -> Image.Image:
        brightness = (latents[:3] * LATENT_CONTRAST + 0.5).clamp(0, 1) * 255
        pixels = brightness.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels)
        return picture.resize(
            (picture.width * SPATIAL_FACTOR, picture.height * SPATIAL_FACTOR), Image.Resampling.NEAREST
        )

    def finish(self, latents: torch.Tensor) -> Image.Image:
        return self.decode(latents)

    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        small = picture.convert("RGB").resize(
            (picture.width // SPATIAL_FACTOR, picture.height // SPATIAL_FACTOR), Image.Resampling.BOX
        )
        brightness = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)
        return torch.cat([(brightness - 0.5) / LATENT_CONTRAST, torch.zeros_like(brightness[:1])])


def forward_ms(rows: int, row_ms: float) -> float:
    """Return the simulated milliseconds of a forward with this many rows."""
    return FORWARD_FIXED_MS + rows * row_ms


def build_calibration(row_ms: float, rows: int) -> Calibration:
    """Return the calibration that the worker announces: given, not measured.

    `rows`: the most rows of a forward; fewer if a calibration would find that more gain nothing.
    """
    bucket_ms = {
        bucket: forward_ms(bucket, row_ms)
        for bucket in (*(smaller for smaller in TIMED_BUCKETS if smaller < rows), rows)
    }
    rows = find_knee(bucket_ms)
    return Calibration(
        dtype="float32",
        rows=rows,
        steps=DEFAULT_STEPS,
        sampler="ddpm",
        row_ms=bucket_ms[rows] / rows,
        encode_ms=0.1,
        decode_ms=1.0,
        bucket_ms=bucket_ms,
        dtype_ms={"float32": bucket_ms[rows]},
    )


def build_cache_model(family: SimulatedModel, calibration: Calibration) -> ModelEntry:
    """Return the model for the model cache. It takes no memory to speak of."""
    return ModelEntry(
        NAME, 1, calibration.to_model_profile(family), lambda options: family, calibration.to_model_profile
    )
