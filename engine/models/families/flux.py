"""Flux.1: T5's token states, CLIP's pooled text, latents packed two by two. Guidance is a network input.

schnell has no such input; there guidance takes rows, and is off by default. Kontext edits a picture by words. Our
latents are unpacked: between networks they are `[channels, height, width]` for every model.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from engine.contract import Recipe
from engine.models.control_conditioner import FluxControlConditioner
from engine.models.families.flow_matching import FlowMatchingFamily
from engine.models.families.picture_editing import NeedsPicture, split_pictures
from engine.models.family import Conditioning
from engine.models.picture_conditions import NO_INPUTS, Additions, PictureConditioner
from engine.models.prompt_chunks import PromptKey

TOKENS = 512  # of T5


class Flux(FlowMatchingFamily):
    """Conditions: T5's states, CLIP's pooled text, and guidance where it is an input."""

    pipelines = ("FluxPipeline",)
    default_guidance = 3.5  # the pipeline's own
    tokens = TOKENS
    unsupported_samplers = ("heun", "dpmpp_3m")

    def _set_up(self, pipeline: Any) -> None:
        self._takes_guidance = _has_guidance_input(pipeline)
        self.guides = "network" if self._takes_guidance else "rows"
        self.size = int(pipeline.default_sample_size) * self.pixels_per_latent
        self.multiple = 2 * self.pixels_per_latent
        self.conditioners = self._make_conditioners(pipeline)
        self._position_ids: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def _choose_guidance(self) -> float:
        return super()._choose_guidance() if _has_guidance_input(self.pipeline) else 1.0

    def _make_conditioners(self, pipeline: Any) -> tuple[PictureConditioner, ...]:
        """Return what takes pictures beside the prompt: ControlNets of Flux."""
        conditioner = FluxControlConditioner(
            pipeline,
            self.device,
            self.encode_image,
            lambda inputs: self._name_inputs(inputs.x, inputs.t, inputs.conditioning),
            self._pack,
        )
        return (conditioner,)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, pooled, _ = pipeline.encode_prompt(prompt.text, device=self.device, max_sequence_length=TOKENS)
        return states[0].float(), pooled[0].float()

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        return (torch.tensor(recipe.guidance, device=self.device),) if self._takes_guidance else ()

    def _unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        return cast(Any, type(self.pipeline))._unpack_latents(latents, height, width, self.pixels_per_latent)

    def _run_network(
        self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, additions: Additions = NO_INPUTS
    ) -> torch.Tensor:
        height, width = x.shape[-2:]
        out = net(**self._name_inputs(x, t, conditioning), **additions, return_dict=False)[0]
        out = out[:, : height * width // 4]  # without the tokens of a picture that is edited
        return self._unpack(out, width * self.pixels_per_latent, height * self.pixels_per_latent)

    def _name_inputs(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return the inputs of a forward by their names, as a ControlNet takes them, too."""
        states, pooled, *guidance = conditioning
        height, width = x.shape[-2:]
        return {
            "hidden_states": self._pack(x),
            "encoder_hidden_states": states,
            "pooled_projections": pooled,
            "guidance": guidance[0] if guidance else None,
            "timestep": t.to(x.dtype) / 1000,
            "img_ids": self._get_position_ids(height // 2, width // 2, x.dtype),
            "txt_ids": x.new_zeros(states.shape[1], 3),
        }

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        return cast(Any, type(self.pipeline))._pack_latents(latents, *latents.shape)

    def _get_position_ids(self, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the position of each packed latent, one for all rows. Cached, since it is computed on the host."""
        key = height, width, dtype
        if key not in self._position_ids:
            self._position_ids[key] = self.pipeline._prepare_latent_image_ids(1, height, width, self.device, dtype)
        return self._position_ids[key]


def _has_guidance_input(pipeline: Any) -> bool:
    return bool(pipeline.transformer.config.get("guidance_embeds"))


class FluxKontext(NeedsPicture, Flux):
    """The picture is encoded at the size of the new one; its pipeline scales it to one of a few sizes instead."""

    pipelines = ("FluxKontextPipeline",)
    unsupported_samplers = (*Flux.unsupported_samplers, "unipc", "native")  # a whole pipeline gets no picture
    max_edit_pictures = 1

    def _make_conditioners(self, pipeline: Any) -> tuple[PictureConditioner, ...]:
        return ()

    def _name_inputs(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        texts, pictures = split_pictures(conditioning)
        inputs = super()._name_inputs(x, t, texts)
        if not pictures:
            return inputs
        (picture,) = pictures
        height, width = picture.shape[-2:]
        positions = self._get_position_ids(height // 2, width // 2, x.dtype) + x.new_tensor([1, 0, 0])
        return inputs | {
            "hidden_states": torch.cat([inputs["hidden_states"], self._pack(picture)], dim=1),
            "img_ids": torch.cat([inputs["img_ids"], positions]),
        }


class Chroma(Flux):
    """Conditions: T5's states, and a mask of the tokens that count."""

    pipelines = ("ChromaPipeline",)
    default_guidance = 5.0  # the pipeline's own
    prompt_arguments = ("prompt_embeds", "prompt_attention_mask")
    unsupported_samplers = ("heun", "unipc", "dpmpp_3m")

    def _choose_guidance(self) -> float:  # guided by two forwards, not by an input as Flux
        return FlowMatchingFamily._choose_guidance(self)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, _, mask, *_ = pipeline.encode_prompt(
            prompt.text, device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return states[0].float(), mask[0].float()

    def _make_conditioners(self, pipeline: Any) -> tuple[PictureConditioner, ...]:
        return ()

    def _name_inputs(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        states, text_mask = conditioning
        tokens, (height, width) = self._pack(x), x.shape[-2:]
        return {
            "hidden_states": tokens,
            "encoder_hidden_states": states,
            "timestep": t.to(x.dtype) / 1000,
            "attention_mask": torch.cat([text_mask, text_mask.new_ones(tokens.shape[:2])], dim=1),
            "img_ids": self._get_position_ids(height // 2, width // 2, x.dtype),
            "txt_ids": x.new_zeros(states.shape[1], 3),
        }
