"""Z-Image: Qwen's states, text and image in one token stream; each row has its own text length.

Its pipeline guides by pred = c + g·(c - u); ours is u + G·(c - u), so G = g + 1. Its 0 is our 1: no guidance.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn.functional import pad

from engine.models.families.diffusers_family import choose_guidance
from engine.models.families.flow_matching import FlowMatchingFamily
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey

GUIDANCE = 6.0  # the pipeline's default of 5, as our G
TOKENS = 512
NATIVE_LATENTS = 128  # latents along a native side: the pipeline's 1024 pixels
PATCH = 2


class ZImage(FlowMatchingFamily):
    """Conditions: the text's states, padded to one length so that texts share a batch, and the unpadded length.

    The length stays on the CPU: the network takes a list of texts, so the host must know where each ends.
    """

    pipelines = ("ZImagePipeline",)
    no_guidance = 0.0
    unsupported_samplers = ("heun", "unipc", "dpmpp_3m")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))
        self.tokens = TOKENS
        self.size = NATIVE_LATENTS * self.pixels_per_latent
        self.multiple = PATCH * self.pixels_per_latent
        # text lengths vary inside, and a packed copy or a graph would fix them
        self.forward_runner.disable_optimizations()

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        (states,), _ = pipeline.encode_prompt(
            prompt.text, self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return pad(states.float(), (0, 0, 0, TOKENS - len(states))), torch.tensor(len(states))

    def _make_prompt_arguments(self, conditions: Conditioning) -> dict[str, Any]:
        states, length = conditions
        return {"prompt_embeds": [states[: int(length)]]}

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        states, lengths = conditioning
        row_lengths = cast(list[int], lengths.tolist())
        unpadded = [row[:length] for row, length in zip(states, row_lengths, strict=True)]
        out = net(list(x.unsqueeze(2)), (1000 - t) / 1000, unpadded, return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
