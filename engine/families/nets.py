"""A model's network in the number formats that jobs use: a copy for each, or one at a time for a large model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from engine.families.family import TORCH
from engine.families.substitutes import substitute_layers
from engine.job import Dtype

Reopen = Callable[[Dtype], Any]


class Nets(Protocol):
    """`dtypes`: the number formats worth timing."""

    dtypes: tuple[Dtype, ...]

    def holds(self, dtype: Dtype) -> bool:
        """Whether the network is available in `dtype` without loading."""
        ...

    def of(self, dtype: Dtype) -> Any:
        """Return the network in this format, on the device."""
        ...


class Copies:
    """Copies of a float32 network, which stays. On a processor it is the float32 copy; bfloat16 gets substitutes."""

    def __init__(self, master: Any, device: torch.device) -> None:
        self._master, self._device = master, device
        self.dtypes: tuple[Dtype, ...] = ("float32", _half(device))
        self._nets: dict[Dtype, Any] = {}

    def holds(self, dtype: Dtype) -> bool:
        return True

    def of(self, dtype: Dtype) -> Any:
        if dtype not in self._nets:
            same = self._device.type == "cpu" and dtype == "float32"
            net = placed(self._master if same else copy.deepcopy(self._master), self._device, dtype)
            if self._device.type == "cpu" and dtype == "bfloat16":
                substitute_layers(net)
            self._nets[dtype] = net
        return self._nets[dtype]


class OneCopy:
    """A large model's network, held in one format at a time. For another format the model is loaded again.

    `forget` is called first, so that other holders release the current network. On a processor the weights stay in
    their mapped files: a forward in bfloat16 takes as long, and nothing is copied.
    """

    def __init__(
        self, net: Any, dtype: Dtype, device: torch.device, reopen: Reopen, forget: Callable[[], None]
    ) -> None:
        self._device, self._reopen, self._forget = device, reopen, forget
        self._net, self._dtype = _moved(net, device), dtype
        self.dtypes: tuple[Dtype, ...] = (dtype,)

    def holds(self, dtype: Dtype) -> bool:
        return dtype == self._dtype and self._net is not None

    def of(self, dtype: Dtype) -> Any:
        if not self.holds(dtype):
            self._forget()
            self._net = None  # before loading: there is no room for two
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            with torch.inference_mode(False):
                net = self._reopen(dtype)
            self._net, self._dtype = _moved(net, self._device), dtype
        return self._net


def placed(net: Any, device: torch.device, dtype: Dtype) -> Any:
    """Move the module itself to the device."""
    torch.nn.Module.to(net, device, TORCH[dtype])  # the subclass's `to` gives needless warnings
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def own_copy(module: Any) -> Any:
    """Copy the module's weights out of their mapped file, which is then released.

    Weights of a convolutional autoencoder become channels-last: it decodes faster, in less memory.
    """
    convolves = isinstance(module, AutoencoderKL)
    for tensor in (*module.parameters(), *module.buffers()):
        form = torch.channels_last if convolves and tensor.dim() == 4 else torch.contiguous_format
        tensor.data = tensor.data.clone(memory_format=form)
    return module


def take_modules(pipeline: Any, other: Any) -> None:
    """Replace the pipeline's modules by those of another one."""
    for part, module in other.components.items():
        if isinstance(module, torch.nn.Module):
            setattr(pipeline, part, module)


def drop_modules(pipeline: Any) -> None:
    """Drop the pipeline's modules with weights."""
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            setattr(pipeline, part, None)


def _moved(net: Any, device: torch.device) -> Any:
    torch.nn.Module.to(net, device)
    if device.type == "cuda":
        net.to(memory_format=torch.channels_last)
    return net.eval().requires_grad_(False)


def _half(device: torch.device) -> Dtype:
    """Return bfloat16 where the hardware supports it: float16 overflows in some networks."""
    return "float16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bfloat16"
