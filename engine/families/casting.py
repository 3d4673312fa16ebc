"""Reads weights in another number format than their files have, one slice of a file at a time.

So only one slice is mapped at once, where the libraries map the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

SLICE = 256 * 2**20  # bytes mapped at once


def read_as(
    files: Sequence[Path],
    dtype: torch.dtype,
    kept: Collection[str] = (),
    wanted: Callable[[str], bool] = lambda key: True,
) -> dict[str, torch.Tensor]:
    """Return the `wanted` weights in `dtype`, copied; weights with a name in `kept` keep their format."""
    read: dict[str, torch.Tensor] = {}
    for path in files:
        for keys in _slices(path, wanted):
            with safe_open(path, framework="pt") as file:  # reopened for each slice, to unmap the last one
                for key in keys:
                    tensor = file.get_tensor(key)
                    exact = not tensor.is_floating_point() or any(name in key for name in kept)
                    read[key] = tensor.clone() if exact else tensor.to(dtype, copy=True)
                    del tensor
    return read


def _slices(path: Path, wanted: Callable[[str], bool]) -> Iterator[list[str]]:
    """Yield names of a file's tensors, about `SLICE` bytes at a time."""
    keys, size = list[str](), 0
    with safe_open(path, framework="pt") as file:
        lengths = {key: 4 * torch.Size(file.get_slice(key).get_shape()).numel() for key in file.keys() if wanted(key)}  # noqa: SIM118
    for key, length in lengths.items():
        if keys and size + length > SLICE:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += length
    if keys:
        yield keys
