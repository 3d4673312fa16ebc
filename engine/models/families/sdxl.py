"""Stable Diffusion XL: two CLIPs, a pooled text, and sizes in pixels as conditions.

Pictures get no watermark, whatever packages are installed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image

from engine.contract import Recipe
from engine.models import prompt_chunks
from engine.models.embedding_files import EmbeddingSlot, spell_words
from engine.models.families.stable_diffusion import UNetFamily
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey
from engine.prompt.emphasis import strip_emphasis


class StableDiffusionXL(UNetFamily):
    """Conditions: token states of both CLIPs, the second's pooled text, sizes, and for an LCM the embedded guidance."""

    pipelines = ("StableDiffusionXLPipeline",)
    default_guidance = 5.0  # the pipeline's own
    text_conditions = 3
    embedding_slots = (
        EmbeddingSlot("clip_l", "tokenizer", "text_encoder"),
        EmbeddingSlot("clip_g", "tokenizer_2", "text_encoder_2"),
    )

    def _set_up(self, pipeline: Any) -> None:
        super()._set_up(pipeline)
        network = pipeline.unet.config
        self.tokens = prompt_chunks.MAX_CHUNKS * prompt_chunks.get_chunk_capacity(pipeline.tokenizer_2)
        self.size = int(network.sample_size) * self.pixels_per_latent
        self.multiple = math.lcm(8, self.pixels_per_latent * 2 ** (len(network.block_out_channels) - 1))
        encoders = pipeline.text_encoder, pipeline.text_encoder_2
        self.max_clip_skip = min(prompt_chunks.count_skippable_layers(encoder.config, 2) for encoder in encoders)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        if prompt.negative and not prompt.text and pipeline.config.force_zeros_for_empty_prompt:
            return tuple(torch.zeros_like(each) for each in self._get_conditioning(prompt._replace(negative=False)))
        chunk_lists = [
            self._make_chunks(pipeline, tokenizer, prompt) for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
        ]
        if all(prompt_chunks.is_plain(each) for each in chunk_lists):
            states, _, pooled, _ = pipeline.encode_prompt(
                spell_words(strip_emphasis(prompt.text), prompt.embeddings),
                device=self.device,
                do_classifier_free_guidance=False,
                clip_skip=prompt.clip_skip,
            )
            return states[0].float(), pooled[0].float()
        first, second = (
            prompt_chunks.encode_chunks(each, encoder, self.device, layer=-prompt.clip_skip - 2)
            for each, encoder in zip(chunk_lists, (pipeline.text_encoder, pipeline.text_encoder_2), strict=True)
        )
        assert second.pooled is not None
        return torch.cat([first.states, second.states], dim=-1), second.pooled

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        """Return original size, crop and target size of an uncropped picture, then guidance where it is an input."""
        size = (recipe.height, recipe.width)
        projection_dim = self.pipeline.text_encoder_2.config.projection_dim
        sizes = self.pipeline._get_add_time_ids(
            size, (0, 0), size, torch.float32, text_encoder_projection_dim=projection_dim
        )[0]
        return sizes.to(self.device), *super()._make_extra_conditioning(recipe)

    @staticmethod
    def _name_texts(conditioning: Conditioning) -> dict[str, Any]:
        states, pooled, sizes, *_ = conditioning
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}

    def decode(self, latents: torch.Tensor) -> Image.Image:
        mean, std = self._get_latent_statistics(latents)
        return super().decode(latents * std + mean)

    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        latents = super().encode_image(picture)
        mean, std = self._get_latent_statistics(latents)
        return (latents - mean) / std

    def _get_latent_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Return mean and deviation of the latents, a channel: some models have more than one scale factor."""
        config = self._vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return 0.0, 1.0
        mean, std = (latents.new_tensor(config[each]).view(-1, 1, 1) for each in ("latents_mean", "latents_std"))
        return mean * config.scaling_factor, std


def as_stable_diffusion_xl(pipeline: Any) -> StableDiffusionXLPipeline:
    """Return the parts as an SDXL pipeline, which has the same ones."""
    parts: dict[str, Any] = pipeline.components
    options: dict[str, Any] = {
        "force_zeros_for_empty_prompt": pipeline.config.force_zeros_for_empty_prompt,
        "add_watermarker": False,
    }
    return StableDiffusionXLPipeline(**parts, **options)
