"""Checks whether a LoRA fits a pipeline's network, by names and shapes in its file; changes no network.

diffusers reads the many formats; this module checks each matrix against a layer of its size. It does not check parts
for text encoders: there are few kinds of encoders, and a job that uses the LoRA tries them.
"""

from __future__ import annotations

import logging
import re
from typing import Any, cast

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from engine.models.lora.lora_files import LoraFile
from engine.models.lora.lora_pipeline import lora_loading_context
from engine.models.quantization.quantized_network import find_weight_shape

log = logging.getLogger(__name__)

_MATRIX_KEY = re.compile(r"^(.+)\.lora_([AB])\.(?:\w+\.)?weight$")


def is_compatible(pipeline: Any, network_name: str, lora: LoraFile) -> bool:
    """Whether the LoRA fits; logs why not."""
    try:
        with lora_loading_context():
            matrices = _read_matrices(pipeline, lora)
        mismatch = _find_mismatch(getattr(pipeline, network_name), _select_part(matrices, network_name))
    except Exception as error:  # untrusted files, many conversions: any error is possible
        mismatch = str(error).partition("\n")[0] or type(error).__name__
    if mismatch:
        log.warning("left out: the LoRA %s does not fit the model: %s", lora.name, mismatch)
    return not mismatch


def _read_matrices(pipeline: Any, lora: LoraFile) -> dict[str, torch.Tensor]:
    """Return the matrices for this pipeline's parts, by diffusers' names."""
    result: Any = pipeline.lora_state_dict(
        str(lora.path.parent),
        weight_name=lora.path.name,
        use_safetensors=True,
        local_files_only=True,
        **({"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}),
    )
    state_dict: dict[str, torch.Tensor] = cast(Any, result)[0] if isinstance(result, tuple) else result
    parts = tuple(f"{part}." for part in pipeline._lora_loadable_modules)
    matrices = {name: value for name, value in state_dict.items() if name.startswith(parts)}
    if not matrices or not all("lora" in name for name in state_dict):
        raise ValueError("it is no LoRA of such a model")
    return matrices


def _select_part(matrices: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    part_matrices = {
        name.removeprefix(f"{part}."): value for name, value in matrices.items() if name.startswith(f"{part}.")
    }
    return (
        part_matrices
        if any("lora_A" in name for name in part_matrices)
        else cast(Any, convert_unet_state_dict_to_peft)(part_matrices)
    )


def _find_mismatch(network: Any, matrices: dict[str, torch.Tensor]) -> str:
    """Return the first mismatch; empty: none. W [out, in, …] becomes W + B [out, r]·A [r, in, …]."""
    layers = dict(network.named_modules())
    for name, matrix in matrices.items():
        match = _MATRIX_KEY.match(name)
        if match is None:
            continue  # a scale or a bias
        shape = find_weight_shape(layers.get(match[1]))
        if shape is None:
            return f"there is no {match[1]}"
        fits_layer = matrix.shape[1:] == shape[1:] if match[2] == "A" else matrix.shape[0] == shape[0]
        if not fits_layer:
            return f"{name} has the shape {list(matrix.shape)}"
    return ""
