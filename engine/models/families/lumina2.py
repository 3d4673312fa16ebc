"""Lumina Image 2: Gemma's states with a mask, one stream of text and image, a time that runs from noise to picture.

Its pipeline scales the guided prediction to the norm of the prompt's own, along each row of latents.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.models.families.diffusers_family import choose_guidance
from engine.models.families.flow_matching import FlowMatchingFamily, compute_mu
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey

GUIDANCE = 4.0  # the pipeline's own default
TOKENS = 256


class Lumina2(FlowMatchingFamily):
    """Conditions: the text's states, and a mask of the tokens that are text."""

    pipelines = ("Lumina2Pipeline",)
    prompt_arguments = ("prompt_embeds", "prompt_attention_mask")
    unsupported_samplers = ("heun", "unipc", "dpmpp_3m")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))
        self.tokens = TOKENS
        self.size = int(pipeline.default_sample_size) * self.pixels_per_latent
        self.multiple = self.pixels_per_latent * int(pipeline.transformer.config.patch_size)
        # text lengths vary inside, and a packed copy or a graph would fix them
        self.forward_runner.disable_optimizations()

    def _compute_mu(self, width: int, height: int, steps: int) -> float:
        return compute_mu(self.scheduler_config, self.latent_channels)  # its pipeline counts channels as tokens

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        if prompt.negative:  # it gets no instruction
            states, mask = pipeline._get_gemma_prompt_embeds(prompt.text, self.device, TOKENS)
        else:
            states, mask, *_ = pipeline.encode_prompt(
                prompt.text, False, device=self.device, max_sequence_length=TOKENS
            )
        return states[0].float(), mask[0].to(torch.int32)

    def measure_norm(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return the norms of `[images, channels, height, width]` along the width: `[images, channels, height, 1]`."""
        return prediction.square().sum(dim=-1, keepdim=True).sqrt()

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        states, mask = conditioning
        return -net(
            hidden_states=x,
            timestep=1 - t / 1000,
            encoder_hidden_states=states,
            encoder_attention_mask=mask > 0,
            return_dict=False,
        )[0]
