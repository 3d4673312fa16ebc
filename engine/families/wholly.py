"""What lets an image of an ordinary family go whole through its own pipeline, where a sampler is no table.

The pipeline then gives latents, which the family finishes as it does all others. Knows the family's parts; no jobs.
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
    """The side of a family that `engine.whole.Source` describes."""

    network: ClassVar[str]
    no_guidance: ClassVar[float] = 1.0  # what the pipeline calls our guidance of 1
    output_type: ClassVar[str] = "latent"
    unable: ClassVar[tuple[Sampler, ...]] = ()  # samplers whose schedulers the pipeline cannot run with its own sigmas
    scheduler_config: Mapping[str, Any]

    @abstractmethod
    def net(self, dtype: Dtype, loras: tuple[Lora, ...] = ()) -> Any:
        """The network in this number format."""

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
        """`[1, channels, height, width]`, however the pipeline has them."""
        return latents
