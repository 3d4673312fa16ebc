"""Control networks of one model: which fit, and those in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, Protocol, cast

import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from safetensors import SafetensorError

from engine.contract import ControlImage, ControlModel, Dtype, JobRejected
from engine.models.control.control_files import (
    CONTROL_KIND,
    ControlFile,
    TargetNetwork,
    build_empty_network,
    convert_weights,
    is_compatible,
)
from engine.models.family import TORCH_DTYPES
from engine.models.files.pipeline_parts import count_parameters
from engine.models.files.tensor_reader import read_tensors
from engine.models.network.network_copies import place_network, substitute_layers
from engine.models.picture_conditions import SlotKind


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


MAX_CONTROLS = 64  # announced control networks, the limit of `engine.contract.ModelProfile`


MAX_KEPT = 4  # networks that stay in memory after their last picture


class ControlCollection:
    """The control networks in `folder` for one model; None: there is no such folder. Any thread may use it."""

    def __init__(self, target: TargetNetwork, device: torch.device) -> None:
        self.folder: Path | None = None
        self.target = target
        self._device = device
        self._lock = RLock()
        self._compatible_revisions: dict[str, bool] = {}
        self._kept: OrderedDict[tuple[str, Dtype], ControlNetwork] = OrderedDict()

    def list_compatible(self) -> tuple[ControlModel, ...]:
        """Return all that fit this model. Each is checked once."""
        files = [file for file in CONTROL_KIND.find_all(self.folder) if self._is_compatible(file)]
        return tuple(
            ControlModel(file.name, file.revision, file.usual_preprocessor, file.row_share)
            for file in files[:MAX_CONTROLS]
        )

    def find(self, control: ControlImage) -> ControlFile:
        """Return a control picture's network. Raises `JobRejected`: missing, unfit or of another revision."""
        file = CONTROL_KIND.find(self.folder, control.name)
        if control.revision and control.revision != file.revision:
            raise JobRejected(f"This worker has another version of the control network {control.name}.", "worker")
        if not self._is_compatible(file):
            raise JobRejected(f"The control network {control.name} does not fit this model.", "model")
        return file

    def load(self, file: ControlFile, dtype: Dtype) -> ControlNetwork:
        """Return the network in this format, loaded at its first use. Raises `JobRejected`."""
        with self._lock:
            key = file.revision, dtype
            if key not in self._kept:
                self._kept[key] = load_control_network(file, self.target, dtype, self._device)
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def count_bytes(self, files: Sequence[ControlFile], dtype: Dtype, *, with_kept: bool = True) -> int:
        """Return the bytes of these networks, `with_kept`: and of those in memory. They are read from headers."""
        wanted = {(file.revision, dtype): file for file in files}
        with self._lock:
            kept_bytes = {key: network.nbytes for key, network in self._kept.items() if with_kept or key in wanted}
        added = [file for key, file in wanted.items() if key not in kept_bytes]
        predicted = sum(count_parameters(list(file.weights))[0] for file in added)
        return sum(kept_bytes.values()) + predicted * TORCH_DTYPES[dtype].itemsize

    def release_others(self, files: Sequence[ControlFile], dtype: Dtype) -> None:
        """Drop all networks but these."""
        wanted = {(file.revision, dtype) for file in files}
        with self._lock:
            for key in self._kept.keys() - wanted:
                del self._kept[key]

    def release(self) -> None:
        """Drop all networks."""
        with self._lock:
            self._kept.clear()

    def _is_compatible(self, file: ControlFile) -> bool:
        with self._lock:
            if file.revision not in self._compatible_revisions:
                self._compatible_revisions[file.revision] = is_compatible(file, self.target)
            return self._compatible_revisions[file.revision]
