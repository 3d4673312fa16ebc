"""Which parts of a pipeline are offloaded: its text encoders, and with `layers` its networks too."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from engine.models.network.cpu_offload import offload_to_cpu
from engine.models.network.group_offload import offload_layers
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX
from engine.process.offload_request import Offload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PipelineOffload:
    """How one model is offloaded from `device`; on a processor, files of its layers wait in a folder of `data`."""

    mode: Offload
    device: torch.device
    data: Path

    def offload_parts(self, pipeline: Any) -> None:
        """Offload the parts of a pipeline before they are moved to the device. Raises `JobRejected`."""
        for name, part in _iterate_parts(pipeline):
            part.eval().requires_grad_(False)
            if name in NETWORK_NAMES:
                self.offload_network(part)
            elif name.startswith(TEXT_ENCODER_PREFIX):
                self._offload_text_encoder(part)

    def offload_network(self, network: Any) -> None:
        """Offload a network or a copy of one, where its layers are to be offloaded."""
        if self.mode != "layers":
            return
        if self.device.type == "cpu" and not _has_plain_weights(network):
            log.warning("quantised weights cannot wait in files: those of a %s stay in memory", type(network).__name__)
            return
        offload_layers(network, self.device, self.data)

    def _offload_text_encoder(self, encoder: Any) -> None:
        """Offload a text encoder layer by layer; as a whole where its weights are quantised."""
        if self.mode == "none" or (self.mode == "text" and self.device.type == "cpu"):
            return
        if _has_plain_weights(encoder):
            offload_layers(encoder, self.device, self.data)
        elif self.device.type != "cpu":
            offload_to_cpu(encoder, self.device)


def _iterate_parts(pipeline: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules of a pipeline by name, those of pipelines inside included."""
    for name, part in list(cast(dict[str, Any], vars(pipeline)).items()):
        if isinstance(part, DiffusionPipeline):
            yield from _iterate_parts(part)
        elif isinstance(part, torch.nn.Module):
            yield name, part


def _has_plain_weights(module: torch.nn.Module) -> bool:
    """Whether no library stores the weights in fewer bits, with more beside them."""
    return all(type(each) is torch.nn.Parameter for each in module.parameters())
