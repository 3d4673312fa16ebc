"""Layers whose weights stay in float8 (e4m3) between their forwards, as files of that format have them.

diffusers' layer-wise casting gives a layer its number format for the time of its forward.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook
from torch import nn

STORAGE_DTYPE = torch.float8_e4m3fn
STORED_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def store_in_float8(net: Any, dtype: torch.dtype) -> Any:
    """Store those layers of the network in float8 that lose nothing by it, as those of a float8 file do."""
    for layer in list(net.modules()):
        if isinstance(layer, STORED_LAYERS) and all(_is_lossless(each) for each in layer.parameters(recurse=False)):
            apply_layerwise_casting_hook(layer, STORAGE_DTYPE, dtype, non_blocking=False)
    net.is_quantized = True  # as the library marks what its quantisers load: its number format is fixed
    return net


def _is_lossless(weights: torch.Tensor) -> bool:
    return torch.equal(weights.to(STORAGE_DTYPE).to(weights.dtype), weights)
