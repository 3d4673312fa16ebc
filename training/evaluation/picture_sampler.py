"""Generates many pictures with the engine's own text encoding, plan and autoencoder, without a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.contract import Dtype, Sampler, add_style, style_of_seed
from engine.models.family import TokenConditioned
from engine.plan import plan
from training.diffusion.latent_sampling import build_input, initial_noise, sample_latents

ROWS_PER_FORWARD = 64  # of a forward: a larger batch gains nothing on a processor


@dataclass(frozen=True)
class PictureSampler:
    """Generates pictures of one family. It calls `on_progress` with the finished and the total number of steps.

    With `styles`, a prompt without one of them gets that of its seed, as a recipe's pictures do.
    """

    family: TokenConditioned
    dtype: Dtype
    on_progress: Callable[[int, int], None] = lambda finished, total: None
    steps: int = 25
    sampler: Sampler = "dpmpp_2m"
    styles: tuple[str, ...] = ()

    def sample_pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Draw uint8 [n, h, w, 3] as people see them, at the model's size; one prompt and seed a picture.

        Each pixel is the mean of its area in the finished picture. Guidance defaults to the model's.
        """
        latents = self.sample_latents(prompts, seeds, guidance, interval)
        return np.stack([np.asarray(self._finish_at_own_size(picture_latents)) for picture_latents in latents])

    def _complete_prompt(self, prompt: str, seed: int) -> str:
        has_style = any(style in prompt for style in self.styles)
        return prompt if has_style else add_style(prompt, style_of_seed(self.styles, seed))

    def _finish_at_own_size(self, latents: Tensor) -> Image.Image:
        picture = self.family.finish(latents).convert("RGB")
        return picture.reduce(self.family.upscale_factor) if self.family.upscale_factor > 1 else picture

    def sample_latents(
        self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw the latents of each prompt and seed: [n, channels, h, w]."""
        family = self.family
        guidance_scale = family.guidance if guidance is None else guidance
        guidance_interval = family.interval if interval is None else interval
        sampling_plan = plan(family.scheduler_config, self.sampler, self.steps)
        drawings = [
            build_input(
                family,
                family.encode_text(self._complete_prompt(prompt, seed)),
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
