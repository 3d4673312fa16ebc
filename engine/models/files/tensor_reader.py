"""Reads weights in another number format than their files have, one slice of a file at a time.

So only one slice is mapped at once, where the libraries map the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

SLICE_BYTES = 256 * 2**20  # bytes mapped at once


def read_tensors(
    files: Sequence[Path],
    dtype: torch.dtype,
    unchanged_names: Collection[str] = (),
    is_selected: Callable[[str], bool] = lambda key: True,
) -> dict[str, torch.Tensor]:
    """Return the weights that `is_selected` accepts, copied in `dtype`; `unchanged_names` keep their format."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        for keys in _split_keys(path, is_selected):
            with cast(Any, safe_open)(path, framework="pt") as file:  # reopened for each slice, to unmap the last one
                for key in keys:
                    tensor: torch.Tensor = file.get_tensor(key)
                    keeps_dtype = not tensor.is_floating_point() or any(name in key for name in unchanged_names)
                    tensors[key] = tensor.clone() if keeps_dtype else tensor.to(dtype, copy=True)
                    del tensor
    return tensors


def _split_keys(path: Path, is_selected: Callable[[str], bool]) -> Iterator[list[str]]:
    """Yield names of a file's tensors, about `SLICE_BYTES` at a time."""
    keys = list[str]()
    size = 0
    with cast(Any, safe_open)(path, framework="pt") as file:
        lengths: dict[str, int] = {
            key: 4 * torch.Size(file.get_slice(key).get_shape()).numel()
            for key in file.keys()  # noqa: SIM118 - the handle is no mapping
            if is_selected(key)
        }
    for key, length in lengths.items():
        if keys and size + length > SLICE_BYTES:
            yield keys
            keys = []
            size = 0
        keys.append(key)
        size += length
    if keys:
        yield keys
