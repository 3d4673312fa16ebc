"""Flux.2: states of three layers of a language model, latents of a patched autoencoder; guidance is a network input.

It draws, and edits pictures by words. Klein is the small one: it has no such input, so guidance takes rows. The
distilled Klein is used without guidance.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from engine.contract import Recipe
from engine.models.autoencoder.autoencoder import PATCH, PatchedAutoencoder
from engine.models.families.diffusers_family import DISTILLED_STEPS, choose_guidance
from engine.models.families.flow_matching import FlowMatchingFamily
from engine.models.families.picture_editing import PictureEditing, split_pictures
from engine.models.family import Conditioning
from engine.models.prompt_chunks import PromptKey

GUIDANCE = 4.0  # the pipelines' own default
TOKENS = 512


class Flux2(PictureEditing, FlowMatchingFamily):
    """Conditions: the text's states, and guidance where it is an input."""

    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    unsupported_samplers = ("heun", "dpmpp_3m")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        is_distilled = bool(pipeline.config.get("is_distilled"))
        default_guidance = 1.0 if is_distilled else choose_guidance(name, GUIDANCE)
        super().__init__(pipeline, name, revision, device, guidance or default_guidance)
        self._takes_guidance = bool(pipeline.transformer.config.guidance_embeds)
        self.guides = "network" if self._takes_guidance else "rows"
        self.tokens = TOKENS
        self.size = int(pipeline.default_sample_size) * int(pipeline.vae_scale_factor)
        self.multiple = self.pixels_per_latent
        if is_distilled:
            self.default_sampling = DISTILLED_STEPS, "euler"
        self._positions: dict[tuple[int, int, int], torch.Tensor] = {}

    @property
    def pixels_per_latent(self) -> int:
        return PATCH * int(self.pipeline.vae_scale_factor)

    def _adapt_autoencoder(self, autoencoder: Any) -> PatchedAutoencoder:
        return PatchedAutoencoder(autoencoder)

    def _compute_mu(self, width: int, height: int, steps: int) -> float:
        return compute_empirical_mu(width * height // self.multiple**2, steps)

    def _encode_text(self, pipeline: Any, prompt: PromptKey) -> Conditioning:
        states, _ = pipeline.encode_prompt(prompt.text, device=self.device, max_sequence_length=TOKENS)
        return (states[0].float(),)

    def _make_extra_conditioning(self, recipe: Recipe) -> Conditioning:
        return (torch.tensor(recipe.guidance, device=self.device),) if self._takes_guidance else ()

    def _run_network(self, net: Any, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        texts, pictures = split_pictures(conditioning)
        states, *guidance = texts
        parts = [x, *pictures]
        positions = torch.cat([self._get_positions(part, number) for number, part in enumerate(parts)])
        out = net(
            hidden_states=torch.cat([_to_tokens(part) for part in parts], dim=1),
            encoder_hidden_states=states,
            timestep=t.to(x.dtype) / 1000,
            guidance=guidance[0] if guidance else None,
            img_ids=positions,
            txt_ids=self._get_text_positions(states.shape[1]),
            return_dict=False,
        )[0]
        count = x.shape[-2] * x.shape[-1]
        return out[:, :count].transpose(1, 2).unflatten(2, x.shape[-2:])

    def _get_positions(self, picture: torch.Tensor, number: int) -> torch.Tensor:
        """Return the position of each latent of a picture `[latents, 4]`, one for all rows.

        Cached, as the host computes it. `number`: of a picture that is edited, from 1; 0: the new one.
        """
        height, width = picture.shape[-2:]
        key = height, width, number
        if key not in self._positions:
            latents = torch.empty(1, 1, height, width)
            pipeline = self.pipeline
            positions = (
                pipeline._prepare_image_ids(number * [latents]) if number else pipeline._prepare_latent_ids(latents)
            )
            self._positions[key] = positions[0, -height * width :].to(self.device)  # those of the last picture
        return self._positions[key]

    def _get_text_positions(self, tokens: int) -> torch.Tensor:
        key = tokens, 0, 0
        if key not in self._positions:
            self._positions[key] = self.pipeline._prepare_text_ids(torch.empty(1, tokens, 1))[0].to(self.device)
        return self._positions[key]

    def _unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        if latents.dim() == 4:  # Klein's finished ones, as its autoencoder takes them
            return self._vae.normalize(latents)
        sides = height // self.pixels_per_latent, width // self.pixels_per_latent
        return latents.transpose(1, 2).reshape(len(latents), -1, *sides)


def _to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """Return latents `[rows, channels, height, width]` as tokens `[rows, height·width, channels]`."""
    return latents.flatten(2).transpose(1, 2)
