"""Lets an ordinary family run an image as a whole pipeline, for samplers that have no plan.

The pipeline returns latents, which the family finishes as usual.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from engine.contract import Dtype, Lora, Sampler
from engine.models.family import TORCH_DTYPES
from engine.pipelines.network_call import NetworkForward
from engine.sampling import build_scheduler


class WholePipelineSupport:
    """Implements `engine.batching.pipeline_images.PipelineSource` for a family."""

    network_name: ClassVar[str]
    no_guidance: ClassVar[float] = 1.0  # the pipeline's value for our guidance of 1
    output_type: ClassVar[str] = "latent"
    unsupported_samplers: ClassVar[tuple[Sampler, ...]] = ()  # whose schedulers do not accept the pipeline's sigmas
    scheduler_config: Mapping[str, Any]

    @abstractmethod
    def get_network(self, dtype: Dtype, loras: tuple[Lora, ...] = ()) -> Any:
        """Return the network in this number format."""

    def make_scheduler(self, sampler: str) -> Any:
        if sampler in self.unsupported_samplers:
            raise ValueError(f"This model's pipeline cannot run the sampler {sampler}.")
        return build_scheduler(self.scheduler_config, sampler)

    def make_forward(self, attribute: str, net: Any, dtype: Dtype, loras: tuple[Lora, ...]) -> NetworkForward:
        own_network = self.get_network(dtype) if attribute == self.network_name and not loras else net
        return NetworkForward(own_network, None if dtype == "float32" else TORCH_DTYPES[dtype])

    def extract_latents(self, output: Any, width: int, height: int) -> torch.Tensor:
        return self._unpack(output, width, height)[0].float()

    def to_preview_latents(self, x0: torch.Tensor, width: int, height: int) -> torch.Tensor | None:
        return self._unpack(x0, width, height)[0].float()

    def final_to_preview_latents(self, final_latents: torch.Tensor) -> torch.Tensor:
        return final_latents

    def _unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Return latents `[1, channels, height, width]` from the pipeline's layout."""
        return latents
