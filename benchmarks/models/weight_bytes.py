"""Counts the bytes that a loaded pipeline's weights take, packed ones included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn


def count_stored_bytes(pipeline: Any) -> int:
    """Return the bytes of all weights of a pipeline; tensors that share memory count once."""
    modules = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
    tensors = (plain for each in modules for weight in each.parameters() for plain in _list_plain_tensors(weight))
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _list_plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors of which a quantised weight is made; a plain one is its own."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in cast(list[str], flatten()[0]):
        yield from _list_plain_tensors(cast(torch.Tensor, getattr(tensor, name)))
