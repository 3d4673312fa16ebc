"""HiDream-I1: two CLIPs' pooled texts, T5, the layers of Llama, and experts of which each token uses a few.

It uses sizes as requested; its pipeline draws every picture at its native area.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.models.families.diffusers_family import choose_guidance
from engine.models.families.flow_matching import FlowMatchingFamily, compute_mu
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey

GUIDANCE = 5.0  # the pipeline's own default
TOKENS = 128


class HiDream(FlowMatchingFamily):
    """Conditions: T5's states, Llama's states `[layers, tokens, features]`, and the CLIPs' pooled texts."""

    pipelines = ("HiDreamImagePipeline",)
    unsupported_samplers = ("heun", "unipc", "dpmpp_3m")
    has_even_sigmas = False

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))
        network = pipeline.transformer
        self.tokens = TOKENS
        self._max_patches = int(network.max_seq)
        self.size = int(network.config.max_resolution[0]) * self.pixels_per_latent
        self.multiple = self.pixels_per_latent * int(network.config.patch_size)
        # how many tokens an expert gets varies inside, and a packed copy or a graph would fix it
        self.forward_runner.disable_optimizations()

    @property
    def max_pixels(self) -> int:
        """The network has no more positions."""
        return self._max_patches * self.multiple**2

    def _compute_mu(self, width: int, height: int, steps: int) -> float:
        return compute_mu({}, self._max_patches)  # the same for every size

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, _, layers, _, pooled, _ = pipeline.encode_prompt(
            prompt.text, device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return states[0].float(), layers[:, 0].float(), pooled[0].float()

    def _make_prompt_arguments(self, conditions: Conditioning) -> dict[str, Any]:
        states, layers, pooled = conditions
        return {
            "prompt_embeds_t5": states[None],
            "prompt_embeds_llama3": layers[:, None],
            "pooled_prompt_embeds": pooled[None],
        }

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        states, layers, pooled = conditioning
        return -net(
            hidden_states=x,
            timesteps=t,
            encoder_hidden_states_t5=states,
            encoder_hidden_states_llama3=layers.transpose(0, 1),
            pooled_embeds=pooled,
            return_dict=False,
        )[0]
