"""Weights of files that are read one at a time, while a library loads them: none stays mapped or copied.

A part that is quantised while it loads so takes little more memory than it does afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open


@dataclass(frozen=True)
class StreamedTensor:
    """One weight in a file: `[...]` reads it in `dtype` (None: the file's), as `safetensors` slices do."""

    path: Path
    key: str
    dtype: torch.dtype | None
    shape: torch.Size

    def __getitem__(self, index: Any) -> torch.Tensor:
        with cast(Any, safe_open)(self.path, framework="pt") as file:  # opened for each, to unmap the last one
            tensor: torch.Tensor = file.get_tensor(self.key)
            is_cast = self.dtype is not None and tensor.is_floating_point()
            return tensor.to(self.dtype, copy=True)[index] if is_cast else tensor.clone()[index]

    def get_shape(self) -> list[int]:
        return list(self.shape)


class StreamedTensors(dict[str, Any]):
    """The weights of `files` by name. `items` reads each as it comes; `values` and lookups give `StreamedTensor`."""

    def __init__(self, files: Sequence[Path], dtype: torch.dtype, unchanged_names: Collection[str] = ()) -> None:
        super().__init__(_list_tensors(files, dtype, unchanged_names))

    def items(self) -> Any:
        return _ReadItems(self)


class _ReadItems(ItemsView[str, Any]):
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name in list(self._mapping):
            yield name, self._mapping[name][...]


def _list_tensors(
    files: Sequence[Path], dtype: torch.dtype, unchanged_names: Collection[str]
) -> Iterator[tuple[str, StreamedTensor]]:
    for path in files:
        with cast(Any, safe_open)(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                is_unchanged = any(name in key for name in unchanged_names)
                shape = torch.Size(file.get_slice(key).get_shape())
                yield key, StreamedTensor(path, key, None if is_unchanged else dtype, shape)
