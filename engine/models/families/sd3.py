"""Stable Diffusion 3 and 3.5: two CLIPs and T5 in joint attention with the image, flow matching."""

from __future__ import annotations

from typing import Any

import torch

from engine.contract import JobRejected, Sampler
from engine.models.control_conditioner import make_sd3_conditioner
from engine.models.families.diffusers_family import choose_guidance
from engine.models.families.flow_matching import FlowMatchingFamily
from engine.models.family import Conditioning
from engine.models.picture_conditions import Additions, ForwardInputs
from engine.models.prompt_chunks import PromptKey
from engine.sampling import Plan

GUIDANCE = 7.0  # the pipeline's own default
TOKENS = 256  # of T5; the CLIPs read 77


class StableDiffusion3(FlowMatchingFamily):
    """Conditions: token states of all three text encoders, concatenated, and the CLIPs' pooled texts."""

    pipelines = ("StableDiffusion3Pipeline",)
    has_even_sigmas = False

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))
        network = pipeline.transformer.config
        self.tokens = TOKENS if pipeline.text_encoder_3 is not None else int(pipeline.tokenizer.model_max_length)
        self.size = int(network.sample_size) * self.pixels_per_latent
        self.multiple = self.pixels_per_latent * int(network.patch_size)
        self.conditioners = (make_sd3_conditioner(pipeline, self.device, self.encode_image, _name_inputs),)
        self._max_side = int(network.pos_embed_max_size) * self.multiple

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        if max(width, height) > self._max_side:  # the network has no more positions
            raise JobRejected(f"With {self.name}, a side has at most {self._max_side} pixels.", "member")
        return super().plan(sampler, steps, eta, width, height)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, _, pooled, _ = pipeline.encode_prompt(
            prompt.text, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return states[0].float(), pooled[0].float()

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self._run_network_with(net, x, t, conditioning, {})

    def _run_network_with(
        self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, additions: Additions
    ) -> torch.Tensor:
        return net(**_name_inputs(ForwardInputs(x, t, conditioning, "float32")), **additions, return_dict=False)[0]


def _name_inputs(inputs: ForwardInputs) -> dict[str, Any]:
    """Return the inputs of a forward by their names, as a ControlNet takes them, too."""
    states, pooled = inputs.conditioning
    return {
        "hidden_states": inputs.x,
        "encoder_hidden_states": states,
        "pooled_projections": pooled,
        "timestep": inputs.t,
    }
