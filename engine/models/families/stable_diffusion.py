"""Stable Diffusion 1.x, 2.x (the embedded model included) and XL: a U-Net, and CLIPs that read a text in chunks.

Pictures get no watermark, whatever packages are installed."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Self, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from transformers.models.bert.modeling_bert import BertModel

from engine.contract import GuidanceKind, ModelPart, Recipe, find_embeddings
from engine.models import prompt_chunks
from engine.models.autoencoder.large_decoder import LARGE_FACTOR, LargeDecoder
from engine.models.control_conditioner import UNetControlConditioner, name_unet_inputs
from engine.models.embedding_files import EmbeddingSlot, spell_words
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import SMALL_MODEL_SIZE, Conditioning
from engine.models.files.model_source import combine_fingerprints
from engine.models.inpainting_conditioner import add_channels
from engine.models.judge import PromptJudge
from engine.models.network.network_copies import attend_to_references, find_references
from engine.models.picture_conditions import NO_INPUTS, Additions
from engine.models.prompt_chunks import PromptKey, list_texts
from engine.picture_files import MAX_SIDE
from engine.prompt.emphasis import strip_emphasis
from engine.upscaling.super_resolver import SuperResolver

OWN_MODEL_GUIDANCE = 4.0  # models trained here have seen fewer pictures
CONSISTENCY_GUIDANCE = 8.0  # for models trained with 3 to 15


class UNetFamily(DiffusersFamily):
    """Shared by families with a U-Net and texts in chunks. Conditions: texts, then guidance for an LCM."""

    network_name = "unet"
    channels_last = True
    supports_emphasis = True
    text_conditions: ClassVar[int]  # conditions before guidance
    _max_chunks = prompt_chunks.MAX_CHUNKS

    def _set_up(self, pipeline: Any) -> None:
        self.guides: GuidanceKind = detect_guides(pipeline)
        self.conditioners = (UNetControlConditioner(pipeline, self.device, self._name_texts),)

    def _choose_guidance(self) -> float:
        return CONSISTENCY_GUIDANCE if detect_guides(self.pipeline) == "network" else super()._choose_guidance()

    def _count_chunks(self, recipe: Recipe) -> int:
        if self._max_chunks == 1:  # so that no text is tokenised for nothing
            return 1
        return max(self._count_text_chunks(text, recipe) for text in list_texts(recipe))

    def _count_text_chunks(self, text: str, recipe: Recipe) -> int:
        embeddings = find_embeddings([text], recipe.embeddings)
        pipeline = self.embeddings.with_tokenizers(self.pipeline, embeddings)
        prompt = PromptKey(text, chunks=self._max_chunks, embeddings=embeddings)
        tokenizers = [getattr(pipeline, slot.tokenizer) for slot in self.embedding_slots]
        return max(len(self._split_text(pipeline, tokenizer, prompt)) for tokenizer in tokenizers)

    def _split_text(self, pipeline: Any, tokenizer: Any, prompt: PromptKey) -> list[prompt_chunks.Chunk]:
        expand = self._make_expansion(pipeline, tokenizer, prompt.embeddings)
        return prompt_chunks.split_into_chunks(prompt.text, tokenizer, prompt.chunks, expand)

    def _make_chunks(self, pipeline: Any, tokenizer: Any, prompt: PromptKey) -> list[prompt_chunks.Chunk]:
        """Return as many chunks as the prompt's image has for its longest text."""
        return prompt_chunks.pad_chunks(self._split_text(pipeline, tokenizer, prompt), prompt.chunks, tokenizer)

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        return embed_guidance(self.pipeline, recipe.guidance, self.device)

    @staticmethod
    @abstractmethod
    def _name_texts(conditioning: Conditioning) -> dict[str, Any]:
        """Return the texts as arguments of the network."""

    def _run_network(
        self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, additions: Additions = NO_INPUTS
    ) -> torch.Tensor:
        guidance = conditioning[self.text_conditions :]
        with attend_to_references(net, find_references(additions)):
            return net(
                add_channels(net, x, additions),
                t,
                timestep_cond=guidance[0] if guidance else None,
                return_dict=False,
                **self._name_texts(conditioning),
                **name_unet_inputs(additions),
            )[0]


class StableDiffusion(UNetFamily):
    """`large_decoder` decodes the finished pictures. Without one, `resolver` upscales those of a small model.

    `revision` covers the large decoder; the resolver becomes part of it where it is used.
    """

    pipelines = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
    text_conditions = 1
    prompt_arguments = ("prompt_embeds",)
    embedding_slots = (EmbeddingSlot("", "tokenizer", "text_encoder"),)
    judge: PromptJudge | None = None

    def __init__(
        self,
        pipeline: Any,
        name: str,
        revision: str,
        device: torch.device | str = "cpu",
        guidance: float | None = None,
        resolver: SuperResolver | None = None,
        large_decoder: LargeDecoder | None = None,
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance)
        # The embedded model was trained with 24 tokens only.
        if self._is_own_model:
            self._max_chunks = 1
        else:
            self.max_clip_skip = prompt_chunks.count_skippable_layers(pipeline.text_encoder.config, 1)
        max_length = int(pipeline.tokenizer.model_max_length)
        chunk_capacity = prompt_chunks.get_chunk_capacity(pipeline.tokenizer)
        self.tokens = max_length if self._max_chunks == 1 else self._max_chunks * chunk_capacity
        self.size = int(pipeline.unet.config.sample_size) * self.pixels_per_latent
        # Each block but one halves the sides.
        self.multiple = self.pixels_per_latent * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        self._large_decoder = large_decoder
        self._resolver = resolver if self.size <= SMALL_MODEL_SIZE and large_decoder is None else None
        if large_decoder is not None:
            cast(Any, large_decoder).to(self.device, memory_format=torch.channels_last)
            self.upscale_factor = LARGE_FACTOR
            self.upscaler = "large decoder"
        if self._resolver is not None:
            self.upscale_factor, self.upscaler = self._resolver.scale, self._resolver.name
            self.revision = combine_fingerprints(revision, self._resolver.fingerprint)

    @property
    def _is_own_model(self) -> bool:
        return isinstance(self.pipeline.text_encoder, BertModel)

    def _choose_guidance(self) -> float:
        return OWN_MODEL_GUIDANCE if self._is_own_model else super()._choose_guidance()

    def encode_text(self, text: str) -> torch.Tensor:
        """Return token states `[tokens, features]`, float32 on the device; one text a call, fixed shape, cached."""
        return self._get_conditioning(PromptKey(text))[0]

    def _get_conditioning(self, prompt: PromptKey) -> Conditioning:
        return super()._get_conditioning(prompt._replace(negative=False))  # a negative text is encoded like any other

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        text_chunks = self._make_chunks(pipeline, pipeline.tokenizer, prompt)
        if prompt_chunks.is_plain(text_chunks) and not prompt.clip_skip:  # diffusers' skip needs an older transformers
            text = spell_words(strip_emphasis(prompt.text), prompt.embeddings)
            states, _ = pipeline.encode_prompt(text, self.device, 1, False)
            return (states[0].float(),)
        skip = prompt.clip_skip
        encoded_text = prompt_chunks.encode_chunks(
            text_chunks,
            pipeline.text_encoder,
            self.device,
            layer=-skip - 1 if skip else None,
            has_final_norm=skip > 0,
            restore=not self._is_own_model,  # the mean of BERT's states is near zero
        )
        return (encoded_text.states,)

    @staticmethod
    def _name_texts(conditioning: Conditioning) -> dict[str, Any]:
        return {"encoder_hidden_states": conditioning[0]}

    def with_autoencoder(self, part: ModelPart) -> Self:
        """Return a copy that shares all but the autoencoder, without the large decoder. Raises `JobRejected`."""
        view = super().with_autoencoder(part)
        view._leave_large_decoder()
        return view

    def use_autoencoder(self, name: str) -> None:
        super().use_autoencoder(name)
        self._leave_large_decoder()

    def _leave_large_decoder(self) -> None:
        if self._large_decoder is not None:
            self._large_decoder = None
            self.upscale_factor = 1
            self.upscaler = ""

    @torch.inference_mode()
    def finish(self, latents: torch.Tensor) -> Image.Image:
        if self.pixels_per_latent * max(latents.shape[-2:]) * self.upscale_factor > MAX_SIDE:
            return self.decode(latents)
        if self._large_decoder is not None:
            return self._decode_with(self._large_decoder, latents)
        picture = self.decode(latents)
        return picture if self._resolver is None else self._resolver.upscale(picture)


def as_stable_diffusion(pipeline: Any) -> StableDiffusionPipeline:
    """Return the parts as a Stable Diffusion pipeline, which has more inputs and differs only in its sampler."""
    absent = dict.fromkeys(("safety_checker", "feature_extractor", "scheduler"))
    parts: dict[str, Any] = pipeline.components | absent
    converted_pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    converted_pipeline.register_modules(scheduler=pipeline.scheduler)  # unchanged: the constructor would "correct" it
    return converted_pipeline


def detect_guides(pipeline: Any) -> GuidanceKind:
    """Return whether guidance is an input of the pipeline's U-Net, or a second row."""
    return "rows" if pipeline.unet.config.get("time_cond_proj_dim") is None else "network"


def embed_guidance(pipeline: Any, guidance: float, device: torch.device) -> Conditioning:
    """Return the guidance input `[width]`, float32; nothing where the network takes none."""
    if detect_guides(pipeline) == "rows":
        return ()
    width = pipeline.unet.config.time_cond_proj_dim
    embedding = pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)
    return (embedding[0].to(device),)


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
