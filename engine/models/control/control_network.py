"""Loaded control networks: a ControlNet runs at every step, a T2I-Adapter once for a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from safetensors import SafetensorError

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.models.control.compatibility import TargetNetwork, build_empty_network, convert_weights
from engine.models.control.control_files import ControlFile
from engine.models.family import TORCH_DTYPES
from engine.models.files.tensor_reader import read_tensors
from engine.models.network.network_copies import place_network
from engine.models.network.substitute_layers import substitute_layers
from engine.models.pictures.picture_conditions import SlotKind


class ControlNetwork(Protocol):
    """A control network in one number format. `kind`: of its slots."""

    kind: SlotKind
    nbytes: int

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        """Return what a forward needs of a control image (RGB) at the picture's size."""
        ...


class ControlNet:
    """A ControlNet (Zhang et al. 2023). Its embedding of the control image runs once, not at every step."""

    kind: SlotKind = "control"

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._embedding = network.controlnet_cond_embedding
        self._device = device
        self._dtype = dtype
        self._is_bgr = network.config.controlnet_conditioning_channel_order == "bgr"
        self.nbytes = _count_bytes(network)
        network.controlnet_cond_embedding = torch.nn.Identity()
        network.register_to_config(controlnet_conditioning_channel_order="rgb")
        self.network = network

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        pixels = _to_pixels(control_image).to(self._device, self._dtype)
        return (self._embedding(pixels.flip(1) if self._is_bgr else pixels)[0],)

    def compute_residuals(
        self, x: torch.Tensor, t: torch.Tensor, embedding: torch.Tensor, arguments: Mapping[str, Any]
    ) -> list[torch.Tensor]:
        """Return the residuals of the way down, and last that of the middle, each `[rows, …]`.

        `embedding`: of each row's control image. `arguments`: the texts, as the network's forward names them.
        """
        down, middle = self.network(x, t, controlnet_cond=embedding, return_dict=False, **arguments)
        return [*down, middle]


class TransformerControlNet:
    """A ControlNet of Flux or Stable Diffusion 3; it reads latents."""

    kind: SlotKind = "control"

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.network = network
        self.dtype = dtype
        self.nbytes = _count_bytes(network)

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        raise TypeError("the model's autoencoder encodes its control images")


class Adapter:
    """A T2I-Adapter (Mou et al. 2023): features that are the same at every step."""

    kind: SlotKind = "adapter"

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.network = network
        self._device = device
        self._dtype = dtype
        self.nbytes = _count_bytes(network)

    def encode_picture(self, control_image: Image.Image) -> tuple[torch.Tensor, ...]:
        is_grey = self.network.config.in_channels == 1
        pixels = _to_pixels(control_image.convert("L") if is_grey else control_image)
        return tuple(feature[0] for feature in self.network(pixels.to(self._device, self._dtype)))


WRAPPERS: dict[type[Any], Callable[[Any, torch.device, torch.dtype], ControlNetwork]] = {
    ControlNetModel: ControlNet,
    T2IAdapter: Adapter,
}


@torch.inference_mode(False)
def load_control_network(
    file: ControlFile, target: TargetNetwork, dtype: Dtype, device: torch.device
) -> ControlNetwork:
    """Load a control network's weights. Raises `JobRejected` where they are damaged or do not fit."""
    torch_dtype = TORCH_DTYPES[dtype]
    try:
        network = build_empty_network(file, target)
        weights = convert_weights(file, read_tensors(file.weights, torch_dtype), network)
        cast(torch.nn.Module, network).load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise JobRejected(f"The control network {file.name} cannot be loaded.", "worker") from error
    if device.type == "cpu" and dtype == "bfloat16" and isinstance(network, ControlNetModel):
        substitute_layers(network)
    placed = place_network(network, device, dtype)
    wrap = WRAPPERS.get(cast(type[Any], type(network)), TransformerControlNet)
    return wrap(placed, device, torch_dtype)


def _to_pixels(picture: Image.Image) -> torch.Tensor:
    """Return `[1, channels, height, width]` from 0 to 1, as diffusers' control pipelines do."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return (pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1))[None]


def _count_bytes(network: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
