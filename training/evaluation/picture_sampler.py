"""Generates many pictures with the engine's own text encoding, plan and autoencoder, without a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.contract import Dtype, Sampler, add_style, find_style, has_style
from engine.models.family import TokenConditioned
from engine.prompt.style_guide import StyleGuide
from engine.sampling import plan
from training.diffusion.latent_sampling import build_input, initial_noise, sample_latents

ROWS_PER_FORWARD = 64  # of a forward: a larger batch gains nothing on a processor


@dataclass(frozen=True)
class PictureSampler:
    """Generates pictures of one family. It calls `on_progress` with the finished and the total number of steps.

    With a `style_guide`, prompts get the styles of their seeds, as a recipe's pictures do.
    """

    family: TokenConditioned
    dtype: Dtype
    on_progress: Callable[[int, int], None] = lambda finished, total: None
    steps: int = 25
    sampler: Sampler = "dpmpp_2m"
    style_guide: StyleGuide | None = None

    def sample_pictures(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Draw uint8 [n, h, w, 3] as people see them, at the model's size; one prompt and seed a picture.

        Each pixel is the mean of its area in the finished picture. Guidance defaults to the model's.
        """
        latents = self.sample_latents(prompts, seeds, guidance, interval)
        return np.stack([np.asarray(self._finish_at_own_size(picture_latents)) for picture_latents in latents])

    def choose_style(self, prompt: str, seed: int) -> str:
        """Return the style that a prompt without one gets from its seed; "" for none."""
        if self.style_guide is None or has_style(prompt):
            return ""
        return find_style(self.style_guide.choose_styles(prompt), seed)

    def _finish_at_own_size(self, latents: Tensor) -> Image.Image:
        picture = self.family.finish(latents).convert("RGB")
        return picture.reduce(self.family.upscale_factor) if self.family.upscale_factor > 1 else picture

    def sample_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Tensor:
        """Draw the latents of each prompt and seed: [n, channels, h, w]."""
        family = self.family
        guidance_scale = family.guidance if guidance is None else guidance
        guidance_interval = family.interval if interval is None else interval
        sampling_plan = plan(family.scheduler_config, self.sampler, self.steps)
        drawings = [
            build_input(
                family,
                family.encode_text(add_style(prompt, self.choose_style(prompt, seed))),
                guidance_scale,
                sampling_plan.init_sigma * initial_noise(family, seed),
                guidance_interval,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return torch.stack(
            sample_latents(
                family, sampling_plan, drawings, on_step=self.on_progress, dtype=self.dtype, rows=ROWS_PER_FORWARD
            )
        )
