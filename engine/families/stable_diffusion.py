"""Stable Diffusion 1.x and 2.x, the embedded model included."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers.models.bert.modeling_bert import BertModel

from engine.emphasis import plain
from engine.families import chunks
from engine.families.consistency import embedded_guidance, guides_of, usual_guidance
from engine.families.family import SMALL, Conditions
from engine.families.pipelined import Pipelined
from engine.families.revision import together
from engine.families.wording import Wording, texts_of
from engine.job import Guides, Recipe
from engine.super_resolver import MAX_SIDE, SuperResolver

OF_OURS, OF_OTHERS = 4.0, 7.5  # guidance: models trained here have seen fewer pictures


class StableDiffusion(Pipelined):
    """`resolver` upscales the finished pictures of a small model, and is then part of its revision."""

    network, channels_last = "unet", True
    weighs, spellings = True, ("prompt_embeds",)

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu",
        guidance: float | None = None, resolver: SuperResolver | None = None,
    ) -> None:  # fmt: skip
        ours = isinstance(pipeline.text_encoder, BertModel)
        usual = OF_OURS if ours else usual_guidance(pipeline, name, OF_OTHERS)
        super().__init__(pipeline, name, revision, device, usual if guidance is None else guidance)
        # The embedded model was trained with 24 tokens only.
        self._most = 1 if isinstance(pipeline.text_encoder, BertModel) else chunks.MOST
        longest, room = int(pipeline.tokenizer.model_max_length), chunks.room(pipeline.tokenizer)
        self.tokens = longest if self._most == 1 else self._most * room
        self.size = int(pipeline.unet.config.sample_size) * self.factor
        # Each block but one halves the sides.
        self.multiple = self.factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        self.guides: Guides = guides_of(pipeline)
        self._resolver = resolver if self.size <= SMALL else None
        if self._resolver is not None:
            self.enlargement, self.upscaler = self._resolver.scale, self._resolver.name
            self.revision = together(revision, self._resolver.fingerprint)

    def encode(self, text: str) -> torch.Tensor:
        """Return token states `[tokens, features]`, float32 on the device; one text a call, fixed shape, cached."""
        return self._told(Wording(text))[0]

    def _chunks(self, recipe: Recipe) -> int:
        return max(len(chunks.chunks(text, self.pipeline.tokenizer, self._most)) for text in texts_of(recipe))

    def _told(self, wording: Wording) -> Conditions:
        return super()._told(wording._replace(negative=False))  # a negative text is encoded like any other

    def _words(self, pipeline: Any, wording: Wording) -> Conditions:
        told = chunks.chunks(wording.text, pipeline.tokenizer, wording.chunks)
        told = chunks.padded(told, wording.chunks, pipeline.tokenizer)
        if chunks.is_plain(told):
            states, _ = pipeline.encode_prompt(plain(wording.text), self.device, 1, False)
            return (states[0].float(),)
        # The mean of BERT's states is near zero, so it cannot be restored.
        clip = not isinstance(pipeline.text_encoder, BertModel)
        return (chunks.read(told, pipeline.text_encoder, restore=clip).states,)

    def _circumstances(self, recipe: Recipe) -> Conditions:
        return embedded_guidance(self.pipeline, recipe.guidance, self.device)

    def _predict(self, net: Any, x: torch.Tensor, t: torch.Tensor, texts: Conditions) -> torch.Tensor:
        states, *guidance = texts
        condition = guidance[0] if guidance else None
        return net(x, t, encoder_hidden_states=states, timestep_cond=condition, return_dict=False)[0]

    def finish(self, latents: torch.Tensor) -> Image.Image:
        picture = self.decode(latents)
        if self._resolver is None or max(picture.size) * self.enlargement > MAX_SIDE:
            return picture
        return self._resolver.enlarge(picture)
