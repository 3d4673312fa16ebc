"""A second device without a GPU: it computes on the processor, and refuses to mix its tensors with others.

Importing it registers the device for the whole process, and notes the devices of autocast instead of casting. So
`train_on_second_device.py` is a process of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
ADAMW = torch.ops.aten._fused_adamw_.default
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

autocast_devices: set[str] = set()

_setup_privateuseone_for_python_backend(
    NAME,
    SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        current_device=lambda: 0,
        device_count=lambda: 1,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        get_amp_supported_dtype=lambda: [torch.bfloat16],
    ),
)


class SecondTensor(torch.Tensor):
    """A tensor of the second device; `content` is the processor's tensor that it stands for."""

    content: torch.Tensor

    @staticmethod
    def __new__(cls, content: torch.Tensor) -> SecondTensor:
        tensor = cast(Any, torch.Tensor)._make_wrapper_subclass(
            cls,
            content.size(),
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.content = content
        return tensor

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"SecondTensor({self.content})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the contents. As on a GPU, numbers without dimensions of the processor may take part."""
        kwargs = kwargs or {}
        tensors = [*_find_tensors(args), *_find_tensors(kwargs.values())]
        others = [tensor for tensor in tensors if not isinstance(tensor, SecondTensor)]
        if op not in COPIES and any(tensor.dim() or op is ADAMW for tensor in others):
            raise RuntimeError(f"{op} got tensors of two devices")
        device = kwargs.get("device")
        arguments = _map_leaves(_unwrap, args)
        kwargs = {name: _map_leaves(_unwrap, value) for name, value in kwargs.items()}
        if op is ADAMW:  # it needs gradients in the layout of the parameters; autograd sees to that on real devices
            parameters, gradients, *rest = arguments
            arguments = parameters, list(map(_match_layout, gradients, parameters)), *rest
        result = op(*arguments, **kwargs)
        if device is not None and torch.device(device).type != NAME:
            return result
        in_place = {id(tensor.content): tensor for tensor in tensors if isinstance(tensor, SecondTensor)}
        return _map_leaves(lambda leaf: in_place[id(leaf)] if id(leaf) in in_place else _wrap(leaf), result)


def _find_tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _find_tensors(value)


def _map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """Change what lists and tuples hold. torch's own `tree_map` takes as long as the operations."""
    if isinstance(value, list | tuple):
        return type(value)([_map_leaves(change, each) for each in value])
    return change(value)


def _unwrap(value: Any) -> Any:
    if isinstance(value, SecondTensor):
        return value.content
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _wrap(value: Any) -> Any:
    return SecondTensor(value) if isinstance(value, torch.Tensor) else value


def _match_layout(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(model).copy_(tensor)


def _skip_autocast(device_type: str, *_: Any, **__: Any) -> Any:
    autocast_devices.add(device_type)
    return contextlib.nullcontext()


def _make_empty(size: Sequence[int], dtype: torch.dtype | None = None, *_: Any, **__: Any) -> torch.Tensor:
    return SecondTensor(torch.empty(size, dtype=dtype))


def _skip_inference_mode(mode: Any = True) -> Any:
    """Stand for `torch.inference_mode`, in which views of a tensor that is written in Python fail."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else torch.enable_grad()


def _make_empty_strided(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None, *_: Any, **__: Any
) -> torch.Tensor:
    return SecondTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _unwrap(target).copy_(_unwrap(source))
    return target


# The kernels that torch calls where no tensor of the device is an argument.
KERNELS = torch.library.Library("aten", "IMPL")
KERNELS.impl("empty.memory_format", _make_empty, "PrivateUse1")
KERNELS.impl("empty_strided", _make_empty_strided, "PrivateUse1")
KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
torch.inference_mode = _skip_inference_mode
torch.autocast = _skip_autocast
