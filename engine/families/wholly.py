"""Lets an ordinary family run an image as a whole pipeline, for samplers that have no plan.

The pipeline returns latents, which the family finishes as usual.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from engine.families.family import TORCH
from engine.job import Dtype, Lora, Sampler
from engine.plan import build_scheduler
from engine.strands.call import Forward


class Wholly:
    """Implements `engine.whole.Source` for a family."""

    network: ClassVar[str]
    no_guidance: ClassVar[float] = 1.0  # the pipeline's value for our guidance of 1
    output_type: ClassVar[str] = "latent"
    unable: ClassVar[tuple[Sampler, ...]] = ()  # samplers whose schedulers do not accept the pipeline's sigmas
    scheduler_config: Mapping[str, Any]

    @abstractmethod
    def net(self, dtype: Dtype, loras: tuple[Lora, ...] = ()) -> Any:
        """Return the network in this number format."""

    def scheduler(self, sampler: str) -> Any:
        if sampler in self.unable:
            raise ValueError(f"This model's pipeline cannot run the sampler {sampler}.")
        return build_scheduler(self.scheduler_config, sampler)

    def forward_of(self, attribute: str, net: Any, dtype: Dtype, loras: tuple[Lora, ...]) -> Forward:
        ours = self.net(dtype) if attribute == self.network and not loras else net
        return Forward(ours, None if dtype == "float32" else TORCH[dtype])

    def finished(self, output: Any, width: int, height: int) -> torch.Tensor:
        return self._unpacked(output, width, height)[0].float()

    def seen(self, x0: torch.Tensor, width: int, height: int) -> torch.Tensor | None:
        return self._unpacked(x0, width, height)[0].float()

    def last_seen(self, finished: torch.Tensor) -> torch.Tensor:
        return finished

    def _unpacked(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Return latents `[1, channels, height, width]` from the pipeline's layout."""
        return latents
