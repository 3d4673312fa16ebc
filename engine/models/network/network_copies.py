"""A model's network in the number formats that jobs use: a copy for each, or one at a time for a large model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from engine.contract import Dtype
from engine.models.family import TORCH_DTYPES
from engine.models.network.cpu_offload import is_offloaded
from engine.models.network.group_offload import copy_without_offload, offload_like
from engine.models.network.substitute_layers import substitute_layers

Reload = Callable[[Dtype], Any]


class Networks(Protocol):
    """`dtypes`: the number formats worth timing."""

    dtypes: tuple[Dtype, ...]

    def has_format(self, dtype: Dtype) -> bool:
        """Whether the network is available in `dtype` without loading."""
        ...

    def get_network(self, dtype: Dtype) -> Any:
        """Return the network in this format, on the device."""
        ...


class NetworkCopies:
    """Copies of a float32 network, which stays. On a processor it is the float32 copy; bfloat16 gets substitutes."""

    def __init__(self, master: Any, device: torch.device) -> None:
        self._master = master
        self._device = device
        self.dtypes: tuple[Dtype, ...] = ("float32", _choose_half_format(device))
        self._networks: dict[Dtype, Any] = {}

    def has_format(self, dtype: Dtype) -> bool:
        return True

    def get_network(self, dtype: Dtype) -> Any:
        if dtype not in self._networks:
            is_master = dtype == "float32" and (self._device.type == "cpu" or is_offloaded(self._master))
            self._networks[dtype] = self._master if is_master else self._make_copy(dtype)
            if not is_offloaded(self._networks[dtype]):
                place_network(self._networks[dtype], self._device, dtype)
        return self._networks[dtype]

    def _make_copy(self, dtype: Dtype) -> Any:
        """Return a copy in this format, and for offloaded layers, offloaded."""
        net = copy.deepcopy(copy_without_offload(self._master))
        if self._device.type == "cpu" and dtype == "bfloat16":
            substitute_layers(net)
        if is_offloaded(self._master):
            torch.nn.Module.to(net, dtype=TORCH_DTYPES[dtype])
            offload_like(net.eval().requires_grad_(False), self._master)
        return net


class SingleNetwork:
    """A large model's network, in memory in one format at a time. For another format the model is loaded again.

    It calls `release` first, so that other holders release the current network. On a processor the weights stay in
    their mapped files: a forward in bfloat16 takes as long, and nothing is copied.
    """

    def __init__(
        self, net: Any, dtype: Dtype, device: torch.device, reload: Reload, release: Callable[[], None]
    ) -> None:
        self._device = device
        self._reload = reload
        self._release = release
        self._network = _move_network(net, device)
        self._dtype = dtype
        self.dtypes: tuple[Dtype, ...] = (dtype,)

    def has_format(self, dtype: Dtype) -> bool:
        return dtype == self._dtype and self._network is not None

    def get_network(self, dtype: Dtype) -> Any:
        if not self.has_format(dtype):
            self._release()
            self._network = None  # before loading: there is no room for two
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            with torch.inference_mode(False):
                net = self._reload(dtype)
            self._network = _move_network(net, self._device)
            self._dtype = dtype
        return self._network


def place_network(net: Any, device: torch.device, dtype: Dtype) -> Any:
    """Move the module itself to the device."""
    torch.nn.Module.to(net, device, TORCH_DTYPES[dtype])  # the subclass's `to` gives needless warnings
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def detach_from_file(module: Any) -> Any:
    """Copy the module's weights out of their mapped file, which is then released.

    Weights of a convolutional autoencoder become channels-last: it decodes faster, in less memory.
    """
    is_convolutional = isinstance(module, AutoencoderKL)
    for tensor in (*module.parameters(), *module.buffers()):
        memory_format = torch.channels_last if is_convolutional and tensor.dim() == 4 else torch.contiguous_format
        tensor.data = tensor.data.clone(memory_format=memory_format)
    return module


def replace_modules(pipeline: Any, source: Any) -> None:
    """Replace the pipeline's modules by those of another one."""
    for part, module in source.components.items():
        if isinstance(module, torch.nn.Module):
            setattr(pipeline, part, module)


def drop_modules(pipeline: Any) -> None:
    """Drop the pipeline's modules with weights."""
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            setattr(pipeline, part, None)


def _move_network(net: Any, device: torch.device) -> Any:
    net.eval().requires_grad_(False)
    if is_offloaded(net):
        return net
    torch.nn.Module.to(net, device)
    if device.type == "cuda":
        net.to(memory_format=torch.channels_last)
    return net


def _choose_half_format(device: torch.device) -> Dtype:
    """Return bfloat16 where the hardware supports it: float16 overflows in some networks."""
    return "float16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bfloat16"
