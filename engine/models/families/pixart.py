"""PixArt-α and PixArt-Σ: T5's states with a mask, in cross-attention; the network may also predict a variance.

It uses sizes as requested, without the pipelines' binning to nearby sizes, and texts without their cleaning.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from engine.contract import Recipe
from engine.models.families.diffusers_family import DiffusersFamily, choose_guidance
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey

GUIDANCE = 4.5  # the pipelines' own default


class PixArt(DiffusersFamily):
    """Conditions: the text's states, a mask of the tokens that are text, and for some models sizes and their ratio."""

    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    prompt_arguments = ("prompt_embeds", "prompt_attention_mask")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        super().__init__(pipeline, name, revision, device, guidance or choose_guidance(name, GUIDANCE))
        network = pipeline.transformer.config
        self.tokens = int(inspect.signature(type(pipeline).__call__).parameters["max_sequence_length"].default)
        self.size = int(network.sample_size) * self.pixels_per_latent
        self.multiple = self.pixels_per_latent * int(network.patch_size)
        self._takes_size = bool(pipeline.transformer.use_additional_conditions)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, mask, _, _ = pipeline.encode_prompt(
            prompt.text, False, device=self.device, clean_caption=False, max_sequence_length=self.tokens
        )
        return states[0].float(), mask[0]

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        """Return the size in pixels and the ratio of height to width, where the network takes them."""
        if not self._takes_size:
            return ()
        size = (recipe.height, recipe.width)
        ratio = (recipe.height / recipe.width,)
        return tuple(torch.tensor(each, dtype=torch.float32, device=self.device) for each in (size, ratio))

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        states, mask, *sizes = conditioning
        resolution, ratio = sizes or (None, None)
        out = net(
            x,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=t,
            added_cond_kwargs={"resolution": resolution, "aspect_ratio": ratio},
            return_dict=False,
        )[0]
        return out[:, : self.latent_channels]  # without the variance
