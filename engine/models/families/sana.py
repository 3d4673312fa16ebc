"""Sana: Gemma's states with a mask, linear attention, and an autoencoder with 32 pixels a latent.

It uses sizes as requested, without the pipeline's binning to nearby sizes.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from PIL import Image

from engine.models.autoencoder.autoencoder import encode_within_memory
from engine.models.families.diffusers_family import DiffusersFamily, choose_guidance
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey

GUIDANCE = 4.5  # the pipeline's own default
TOKENS = 300
MULTIPLE = 32  # the pipeline accepts no other sides


class Sana(DiffusersFamily):
    """Conditions: the text's states, and a mask of the tokens that are text."""

    pipelines = ("SanaPipeline",)
    prompt_arguments = ("prompt_embeds", "prompt_attention_mask")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))
        network = pipeline.transformer.config
        self.tokens = TOKENS
        self.size = int(network.sample_size) * self.pixels_per_latent
        self.multiple = math.lcm(MULTIPLE, self.pixels_per_latent * int(network.patch_size))
        # The pipeline's default instruction for Gemma.
        self._instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, mask, _, _ = pipeline.encode_prompt(
            prompt.text,
            False,
            device=self.device,
            max_sequence_length=TOKENS,
            complex_human_instruction=None if prompt.negative else self._instruction,
        )
        return states[0].float(), mask[0]

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        states, mask = conditioning
        out = net(
            x,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=t * net.config.timestep_scale,
            return_dict=False,
        )[0]
        return out[:, : self.latent_channels]  # a network with a learned variance appends it

    @torch.inference_mode()
    def encode_image(self, picture: Image.Image) -> torch.Tensor:
        pixels = self.pipeline.image_processor.preprocess(picture).to(self.device, self._vae.dtype)
        return encode_within_memory(self._vae, pixels)[0] * self._vae.config.scaling_factor
