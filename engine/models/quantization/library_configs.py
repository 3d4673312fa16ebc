"""Configurations with which diffusers and transformers quantise a part while they load it.

torchao stores int8, float8 (both with a scale for each row) and int4 (with one for each group of a row), weights only:
a forward computes in the model's number format. bitsandbytes stores nf4 and llm_int8, on a GPU: diffusers refuses its
weights without one, though bitsandbytes itself also computes on a processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from engine.contract import Quantization
from engine.contract.rejection import JobRejected
from engine.models.quantization.matrix_sizes import GROUP_SIZE, Matrix, is_quantizable

TORCHAO_QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "float8", "int4")
INT4_CAPABILITY = (8, 0)  # the oldest GPUs whose kernels take int4: Ampere
PACKAGES: dict[Quantization, str] = {
    "int8": "torchao",
    "float8": "torchao",
    "int4": "torchao",
    "nf4": "bitsandbytes",
    "gguf": "gguf",
    "llm_int8": "bitsandbytes",
}


def find_obstacle(quantization: Quantization, device: torch.device) -> str:
    """Return why this worker cannot store weights so, as a part of a sentence; empty if it can."""
    package = PACKAGES.get(quantization)
    if package is not None and find_spec(package) is None:
        return f"the package {package} is not installed"
    if package == "bitsandbytes" and device.type != "cuda":
        return "weights of bitsandbytes are opened on a GPU only"
    if quantization == "int4" and device.type == "cuda" and torch.cuda.get_device_capability(device) < INT4_CAPABILITY:
        return "this GPU has no kernels for it"
    return ""


def refuse_unavailable(quantization: Quantization, device: torch.device) -> None:
    """Raise `JobRejected` where this worker cannot store weights so."""
    if obstacle := find_obstacle(quantization, device):
        raise JobRejected(f"Weights cannot be stored as {quantization} here: {obstacle}.", "worker")


def make_library_config(
    library: str, quantization: Quantization, device: torch.device, dtype: torch.dtype, matrices: Iterable[Matrix]
) -> Any:
    """Return the configuration for a part of `library` (diffusers or transformers) that computes in `dtype`."""
    classes: Any = import_module(library)
    if quantization == "llm_int8":
        return classes.BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "nf4":
        return classes.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    kept_layers = [
        matrix.name.removesuffix(".weight") for matrix in matrices if not is_quantizable(matrix, quantization)
    ]
    return classes.TorchAoConfig(_make_torchao_config(quantization, device), modules_to_not_convert=kept_layers)


def _make_torchao_config(quantization: Quantization, device: torch.device) -> Any:
    torchao: Any = import_module("torchao.quantization")
    if quantization == "int8":
        return torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    if quantization == "float8":
        return torchao.Float8WeightOnlyConfig(set_inductor_config=False)
    if device.type == "cuda":
        return torchao.Int4WeightOnlyConfig(
            group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    prototype: Any = import_module("torchao.prototype.quantization.int4")  # torch's own kernel for processors
    return prototype.PrototypeInt4WeightOnlyConfig(group_size=GROUP_SIZE, set_inductor_config=False)


def quantize_in_place(module: nn.Module, quantization: Quantization, device: torch.device) -> None:
    """Quantise a loaded module as torchao does while it loads one. Raises `JobRejected` for nf4."""
    if quantization not in TORCHAO_QUANTIZATIONS:
        raise JobRejected(f"The parts of a single file cannot be stored as {quantization}.", "worker")
    quantize: Any = import_module("torchao.quantization").quantize_

    def is_chosen(layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear) and is_quantizable(
            Matrix(name, layer.out_features, layer.in_features), quantization
        )

    quantize(module.to(device), _make_torchao_config(quantization, device), is_chosen)
