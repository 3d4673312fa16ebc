"""Flux.1: T5's token states, CLIP's pooled text, latents packed two by two. Guidance is a network input.

schnell has no such input; there guidance takes rows, and is off by default. Our latents are unpacked: between networks
they are `[channels, height, width]` for every model.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.families.distilled import guidance_for
from engine.families.family import Conditions
from engine.families.flow import evenly, shift
from engine.families.pipelined import Pipelined
from engine.families.wording import Wording
from engine.job import Recipe, Sampler
from engine.plan import Plan, Timing, plan

GUIDANCE = 3.5  # the pipeline's own default
TOKENS = 512  # of T5


class Flux(Pipelined):
    """Conditions: T5's states, CLIP's pooled text, and guidance where it is an input."""

    unable = ("heun", "dpmpp_3m")

    def __init__(
        self, pipeline: Any, name: str, revision: str, device: torch.device | str = "cpu", guidance: float | None = None
    ) -> None:
        self._takes_guidance = bool(pipeline.transformer.config.guidance_embeds)
        usual = guidance_for(name, GUIDANCE) if self._takes_guidance else 1.0
        super().__init__(pipeline, name, revision, device, guidance or usual)
        self.guides = "network" if self._takes_guidance else "rows"
        self.tokens = TOKENS
        self.size = int(pipeline.default_sample_size) * self.factor
        self.multiple = 2 * self.factor
        self._places: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def plan(self, sampler: Sampler, steps: int, eta: float, width: int, height: int) -> Plan:
        mu = shift(self.scheduler_config, width * height // self.multiple**2)
        return plan(self.scheduler_config, sampler, steps, eta, Timing(mu=mu, sigmas=evenly(steps)))

    def _words(self, pipeline: Any, wording: Wording) -> Conditions:
        states, pooled, _ = pipeline.encode_prompt(wording.text, device=self.device, max_sequence_length=TOKENS)
        return states[0].float(), pooled[0].float()

    def _circumstances(self, recipe: Recipe) -> Conditions:
        return (torch.tensor(recipe.guidance, device=self.device),) if self._takes_guidance else ()

    def _unpacked(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        return type(self.pipeline)._unpack_latents(latents, height, width, self.factor)

    def _predict(self, net: Any, x: torch.Tensor, t: torch.Tensor, texts: Conditions) -> torch.Tensor:
        states, pooled, *guidance = texts
        rows, channels, height, width = x.shape
        ours = type(self.pipeline)
        out = net(
            hidden_states=ours._pack_latents(x, rows, channels, height, width), encoder_hidden_states=states,
            pooled_projections=pooled, guidance=guidance[0] if guidance else None, timestep=t.to(x.dtype) / 1000,
            img_ids=self._at(height // 2, width // 2, x.dtype), txt_ids=x.new_zeros(states.shape[1], 3),
            return_dict=False,
        )[0]  # fmt: skip
        return self._unpacked(out, width * self.factor, height * self.factor)

    def _at(self, height: int, width: int, kind: torch.dtype) -> torch.Tensor:
        """Return the position of each packed latent, one for all rows. Cached, since it is computed on the host."""
        key = height, width, kind
        if key not in self._places:
            self._places[key] = self.pipeline._prepare_latent_image_ids(1, height, width, self.device, kind)
        return self._places[key]
