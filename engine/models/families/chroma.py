"""Chroma: Flux.1 without CLIP and without the guidance input. T5's padding is masked, but for its first token."""

from __future__ import annotations

from typing import Any

import torch

from engine.models.families.diffusers_family import choose_guidance
from engine.models.families.flux import TOKENS, Flux
from engine.models.family import Conditioning
from engine.models.picture_conditions import PictureConditioner
from engine.models.text_cache import PromptKey

GUIDANCE = 5.0  # the pipeline's own default


class Chroma(Flux):
    """Conditions: T5's states, and a mask of the tokens that count."""

    pipelines = ("ChromaPipeline",)
    prompt_arguments = ("prompt_embeds", "prompt_attention_mask")
    unsupported_samplers = ("heun", "unipc", "dpmpp_3m")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))

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
