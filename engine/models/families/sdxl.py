"""Stable Diffusion XL: two CLIPs, a pooled text, and sizes in pixels as conditions.

Pictures get no watermark, whatever packages are installed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image

from engine.contract import GuidanceKind, Recipe, find_embeddings
from engine.models import prompt_chunks
from engine.models.control_conditioner import make_unet_conditioner, name_unet_inputs
from engine.models.embedding_files import EmbeddingSlot, spell_words
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.families.stable_diffusion import choose_default_guidance, detect_guides, embed_guidance
from engine.models.family import Conditioning
from engine.models.inpainting_conditioner import add_channels
from engine.models.network.network_copies import attend_to_references, find_references
from engine.models.picture_conditions import Additions
from engine.models.prompt_chunks import PromptKey, list_texts
from engine.prompt.emphasis import strip_emphasis

GUIDANCE = 5.0  # the pipeline's own default


class StableDiffusionXL(DiffusersFamily):
    """Conditions: token states of both CLIPs, the second's pooled text, sizes, and for an LCM the embedded guidance."""

    pipelines = ("StableDiffusionXLPipeline",)
    network_name = "unet"
    channels_last = True
    supports_emphasis = True
    embedding_slots = (
        EmbeddingSlot("clip_l", "tokenizer", "text_encoder"),
        EmbeddingSlot("clip_g", "tokenizer_2", "text_encoder_2"),
    )

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(
            pipeline, name, revision, device, guidance or choose_default_guidance(pipeline, name, GUIDANCE)
        )
        network = pipeline.unet.config
        self.tokens = prompt_chunks.MAX_CHUNKS * prompt_chunks.get_chunk_capacity(pipeline.tokenizer_2)
        self.size = int(network.sample_size) * self.pixels_per_latent
        self.multiple = math.lcm(8, self.pixels_per_latent * 2 ** (len(network.block_out_channels) - 1))
        self.guides: GuidanceKind = detect_guides(pipeline)
        encoders = pipeline.text_encoder, pipeline.text_encoder_2
        self.max_clip_skip = min(prompt_chunks.count_skippable_layers(encoder.config, 2) for encoder in encoders)
        self.conditioners = (make_unet_conditioner(pipeline, self.device, _name_texts),)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        if prompt.negative and not prompt.text and pipeline.config.force_zeros_for_empty_prompt:
            return tuple(torch.zeros_like(each) for each in self._get_conditioning(prompt._replace(negative=False)))
        chunk_lists = [
            prompt_chunks.pad_chunks(
                prompt_chunks.split_into_chunks(
                    prompt.text, tokenizer, prompt.chunks, self._make_expansion(pipeline, tokenizer, prompt.embeddings)
                ),
                prompt.chunks,
                tokenizer,
            )
            for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
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

    def _count_chunks(self, recipe: Recipe) -> int:
        return max(self._count_text_chunks(text, recipe) for text in list_texts(recipe))

    def _count_text_chunks(self, text: str, recipe: Recipe) -> int:
        embeddings = find_embeddings([text], recipe.embeddings)
        pipeline = self._embeddings.with_tokenizers(self.pipeline, embeddings)
        return max(
            len(
                prompt_chunks.split_into_chunks(
                    text, tokenizer, expand=self._make_expansion(pipeline, tokenizer, embeddings)
                )
            )
            for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
        )

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        """Return original size, crop and target size of an uncropped picture, then guidance where it is an input."""
        size = (recipe.height, recipe.width)
        projection_dim = self.pipeline.text_encoder_2.config.projection_dim
        sizes = self.pipeline._get_add_time_ids(
            size, (0, 0), size, torch.float32, text_encoder_projection_dim=projection_dim
        )[0]
        return sizes.to(self.device), *embed_guidance(self.pipeline, recipe.guidance, self.device)

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self._run_network_with(net, x, t, conditioning, {})

    def _run_network_with(
        self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, additions: Additions
    ) -> torch.Tensor:
        guidance = conditioning[3:]
        with attend_to_references(net, find_references(additions)):
            return net(
                add_channels(net, x, additions),
                t,
                timestep_cond=guidance[0] if guidance else None,
                return_dict=False,
                **_name_texts(conditioning),
                **name_unet_inputs(additions),
            )[0]

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


def _name_texts(conditioning: Conditioning) -> dict[str, Any]:
    states, pooled, sizes, *_ = conditioning
    return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def as_stable_diffusion_xl(pipeline: Any) -> StableDiffusionXLPipeline:
    """Return the parts as an SDXL pipeline, which has the same ones."""
    parts: dict[str, Any] = pipeline.components
    options: dict[str, Any] = {
        "force_zeros_for_empty_prompt": pipeline.config.force_zeros_for_empty_prompt,
        "add_watermarker": False,
    }
    return StableDiffusionXLPipeline(**parts, **options)
