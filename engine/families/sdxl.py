"""Stable Diffusion XL: two CLIPs, a pooled text, and sizes in pixels as conditions.

Pictures get no watermark, whatever packages are installed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image

from engine.emphasis import plain
from engine.families import chunks
from engine.families.consistency import embedded_guidance, guides_of, usual_guidance
from engine.families.family import Conditions
from engine.families.pipelined import Pipelined
from engine.families.wording import Wording, texts_of
from engine.job import Guides, Recipe

GUIDANCE = 5.0  # the pipeline's own default


class StableDiffusionXL(Pipelined):
    """Conditions: token states of both CLIPs, the second's pooled text, sizes, and for an LCM the embedded guidance."""

    network, channels_last = "unet", True
    weighs = True

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or usual_guidance(pipeline, name, GUIDANCE))
        network = pipeline.unet.config
        self.tokens = chunks.MOST * chunks.room(pipeline.tokenizer_2)
        self.size = int(network.sample_size) * self.factor
        self.multiple = math.lcm(8, self.factor * 2 ** (len(network.block_out_channels) - 1))
        self.guides: Guides = guides_of(pipeline)

    def _words(self, pipeline: Any, wording: Wording) -> Conditions:
        if wording.negative and not wording.text and pipeline.config.force_zeros_for_empty_prompt:
            return tuple(torch.zeros_like(each) for each in self._told(wording._replace(negative=False)))
        told = [
            chunks.padded(chunks.chunks(wording.text, tokenizer, wording.chunks), wording.chunks, tokenizer)
            for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
        ]
        if all(chunks.is_plain(each) for each in told):
            states, _, pooled, _ = pipeline.encode_prompt(
                plain(wording.text), device=self.device, do_classifier_free_guidance=False
            )
            return states[0].float(), pooled[0].float()
        first, second = (
            chunks.read(each, encoder, penultimate=True)
            for each, encoder in zip(told, (pipeline.text_encoder, pipeline.text_encoder_2), strict=True)
        )
        assert second.pooled is not None
        return torch.cat([first.states, second.states], dim=-1), second.pooled

    def _chunks(self, recipe: Recipe) -> int:
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        return max(len(chunks.chunks(text, each)) for text in texts_of(recipe) for each in tokenizers)

    def _circumstances(self, recipe: Recipe) -> Conditions:
        """Return original size, crop and target size of an uncropped picture, then guidance where it is an input."""
        size, projected = (recipe.height, recipe.width), self.pipeline.text_encoder_2.config.projection_dim
        sizes = self.pipeline._get_add_time_ids(
            size, (0, 0), size, torch.float32, text_encoder_projection_dim=projected
        )[0]
        return sizes.to(self.device), *embedded_guidance(self.pipeline, recipe.guidance, self.device)

    def _predict(self, net: Any, x: torch.Tensor, t: torch.Tensor, texts: Conditions) -> torch.Tensor:
        states, pooled, sizes, *guidance = texts
        return net(
            x, t, encoder_hidden_states=states, timestep_cond=guidance[0] if guidance else None,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}, return_dict=False,
        )[0]  # fmt: skip

    def decode(self, latents: torch.Tensor) -> Image.Image:
        centre, spread = self._ranges(latents)
        return super().decode(latents * spread + centre)

    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        latents = super().encode_image(picture)
        centre, spread = self._ranges(latents)
        return (latents - centre) / spread

    def _ranges(self, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Return mean and deviation of the latents, a channel: some models have more than one scale factor."""
        config = self._vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return 0.0, 1.0
        centre, spread = (like.new_tensor(config[each]).view(-1, 1, 1) for each in ("latents_mean", "latents_std"))
        return centre * config.scaling_factor, spread
