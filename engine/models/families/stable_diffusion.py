"""Stable Diffusion 1.x and 2.x, the embedded model included."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from transformers.models.bert.modeling_bert import BertModel

from engine.contract import GuidanceKind, ModelPart, Recipe, find_embeddings
from engine.models import prompt_chunks
from engine.models.autoencoder.large_decoder import LARGE_FACTOR, LargeDecoder
from engine.models.control_conditioner import make_unet_conditioner, name_unet_inputs
from engine.models.embedding_files import EmbeddingSlot, spell_words
from engine.models.families.diffusers_family import DiffusersFamily, choose_guidance
from engine.models.family import SMALL_MODEL_SIZE, Conditioning
from engine.models.files.model_source import combine_fingerprints
from engine.models.inpainting_conditioner import add_channels
from engine.models.judge import PromptJudge
from engine.models.network.network_copies import attend_to_references, find_references
from engine.models.picture_conditions import Additions
from engine.models.prompt_chunks import PromptKey, list_texts
from engine.picture_files import MAX_SIDE
from engine.prompt.emphasis import strip_emphasis
from engine.upscaling.super_resolver import SuperResolver

# guidance: models trained here have seen fewer pictures
OWN_MODEL_GUIDANCE = 4.0
DEFAULT_GUIDANCE = 7.5


class StableDiffusion(DiffusersFamily):
    """`large_decoder` decodes the finished pictures. Without one, `resolver` upscales those of a small model.

    `revision` covers the large decoder; the resolver becomes part of it where it is used.
    """

    pipelines = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
    network_name = "unet"
    channels_last = True
    supports_emphasis = True
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
        is_own_model = isinstance(pipeline.text_encoder, BertModel)
        default_guidance = (
            OWN_MODEL_GUIDANCE if is_own_model else choose_default_guidance(pipeline, name, DEFAULT_GUIDANCE)
        )
        super().__init__(pipeline, name, revision, device, default_guidance if guidance is None else guidance)
        # The embedded model was trained with 24 tokens only.
        self._max_chunks = 1 if isinstance(pipeline.text_encoder, BertModel) else prompt_chunks.MAX_CHUNKS
        self.max_clip_skip = (
            0 if is_own_model else prompt_chunks.count_skippable_layers(pipeline.text_encoder.config, 1)
        )
        max_length = int(pipeline.tokenizer.model_max_length)
        chunk_capacity = prompt_chunks.get_chunk_capacity(pipeline.tokenizer)
        self.tokens = max_length if self._max_chunks == 1 else self._max_chunks * chunk_capacity
        self.size = int(pipeline.unet.config.sample_size) * self.pixels_per_latent
        # Each block but one halves the sides.
        self.multiple = self.pixels_per_latent * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        self.guides: GuidanceKind = detect_guides(pipeline)
        self.conditioners = (make_unet_conditioner(pipeline, self.device, _name_texts),)
        self._large_decoder = large_decoder
        self._resolver = resolver if self.size <= SMALL_MODEL_SIZE and large_decoder is None else None
        if large_decoder is not None:
            cast(Any, large_decoder).to(self.device, memory_format=torch.channels_last)
            self.upscale_factor = LARGE_FACTOR
            self.upscaler = "large decoder"
        if self._resolver is not None:
            self.upscale_factor, self.upscaler = self._resolver.scale, self._resolver.name
            self.revision = combine_fingerprints(revision, self._resolver.fingerprint)

    def encode_text(self, text: str) -> torch.Tensor:
        """Return token states `[tokens, features]`, float32 on the device; one text a call, fixed shape, cached."""
        return self._get_conditioning(PromptKey(text))[0]

    def _count_chunks(self, recipe: Recipe) -> int:
        if self._max_chunks == 1:  # so that no text is tokenised for nothing
            return 1
        return max(self._count_text_chunks(text, recipe) for text in list_texts(recipe))

    def _count_text_chunks(self, text: str, recipe: Recipe) -> int:
        embeddings = find_embeddings([text], recipe.embeddings)
        pipeline = self._embeddings.with_tokenizers(self.pipeline, embeddings)
        expand = self._make_expansion(pipeline, pipeline.tokenizer, embeddings)
        return len(prompt_chunks.split_into_chunks(text, pipeline.tokenizer, self._max_chunks, expand))

    def _get_conditioning(self, prompt: PromptKey) -> Conditioning:
        return super()._get_conditioning(prompt._replace(negative=False))  # a negative text is encoded like any other

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        expand = self._make_expansion(pipeline, pipeline.tokenizer, prompt.embeddings)
        text_chunks = prompt_chunks.split_into_chunks(prompt.text, pipeline.tokenizer, prompt.chunks, expand)
        text_chunks = prompt_chunks.pad_chunks(text_chunks, prompt.chunks, pipeline.tokenizer)
        if prompt_chunks.is_plain(text_chunks) and not prompt.clip_skip:  # diffusers' skip needs an older transformers
            text = spell_words(strip_emphasis(prompt.text), prompt.embeddings)
            states, _ = pipeline.encode_prompt(text, self.device, 1, False)
            return (states[0].float(),)
        # The mean of BERT's states is near zero, so it cannot be restored.
        is_clip = not isinstance(pipeline.text_encoder, BertModel)
        skip = prompt.clip_skip
        encoded_text = prompt_chunks.encode_chunks(
            text_chunks,
            pipeline.text_encoder,
            self.device,
            layer=-skip - 1 if skip else None,
            has_final_norm=skip > 0,
            restore=is_clip,
        )
        return (encoded_text.states,)

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        return embed_guidance(self.pipeline, recipe.guidance, self.device)

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self._run_network_with(net, x, t, conditioning, {})

    def _run_network_with(
        self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, additions: Additions
    ) -> torch.Tensor:
        states, *guidance = conditioning
        with attend_to_references(net, find_references(additions)):
            return net(
                add_channels(net, x, additions),
                t,
                encoder_hidden_states=states,
                timestep_cond=guidance[0] if guidance else None,
                return_dict=False,
                **name_unet_inputs(additions),
            )[0]

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


def _name_texts(conditioning: Conditioning) -> dict[str, Any]:
    return {"encoder_hidden_states": conditioning[0]}


CONSISTENCY_GUIDANCE = 8.0  # for models trained with 3 to 15


def as_stable_diffusion(pipeline: Any) -> StableDiffusionPipeline:
    """Return the parts as a Stable Diffusion pipeline, which has more inputs and differs only in its sampler."""
    parts: dict[str, Any] = {
        **pipeline.components,
        "safety_checker": None,
        "feature_extractor": None,
        "scheduler": None,
    }
    converted_pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    converted_pipeline.register_modules(scheduler=pipeline.scheduler)  # unchanged: the constructor would "correct" it
    return converted_pipeline


def detect_guides(pipeline: Any) -> GuidanceKind:
    """Return whether guidance is an input of the pipeline's U-Net, or a second row."""
    return "rows" if pipeline.unet.config.get("time_cond_proj_dim") is None else "network"


def choose_default_guidance(pipeline: Any, name: str, family_default: float) -> float:
    """Return the default guidance of a Stable Diffusion of this name; `family_default` is its family's."""
    return CONSISTENCY_GUIDANCE if detect_guides(pipeline) == "network" else choose_guidance(name, family_default)


def embed_guidance(pipeline: Any, guidance: float, device: torch.device) -> Conditioning:
    """Return the guidance input `[width]`, float32; nothing where the network takes none."""
    if detect_guides(pipeline) == "rows":
        return ()
    width = pipeline.unet.config.time_cond_proj_dim
    embedding = pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)
    return (embedding[0].to(device),)
