"""What a loaded network, and the family that has it, tell of its quantisation."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from engine.contract import Quantization


@runtime_checkable
class HasQuantization(Protocol):
    """A family whose network may be quantised."""

    quantization: Quantization


def find_quantization(family: object) -> Quantization:
    """Return how the weights of the family's network are stored."""
    return family.quantization if isinstance(family, HasQuantization) else "none"


def is_quantized(net: Any) -> bool:
    """Whether the library that loaded the network stored its weights in fewer bits."""
    return bool(getattr(net, "is_quantized", False))


def find_compute_dtype(net: nn.Module) -> torch.dtype:
    """Return the number format in which the network computes: of its first weight that is not stored in fewer bits.

    torchao's weights have the format in which they compute as theirs. Weights of 8 bits are packed.
    """
    dtypes = (each.dtype for each in net.parameters() if each.is_floating_point() and each.dtype.itemsize > 1)
    return next(dtypes, torch.float32)


def find_weight_shape(layer: nn.Module | None) -> tuple[int, ...] | None:
    """Return the shape of a layer's weight as if it were not packed; None where it has no weight."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    weight = getattr(layer, "weight", None)
    return None if weight is None else tuple(weight.shape)
