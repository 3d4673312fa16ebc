"""Parts of a folder that are quantised already, and are opened as they are by the library that saved them.

torchao's int8 and float8 (weights only), and nf4 and LLM.int8() of bitsandbytes. Loads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from engine.contract import Quantization
from engine.contract.rejection import JobRejected
from engine.models.quantization.library_configs import PACKAGES, find_obstacle

TORCHAO = "torchao"
BITSANDBYTES = "bitsandbytes"
_TORCHAO_TYPES: dict[str, Quantization] = {"Int8WeightOnlyConfig": "int8", "Float8WeightOnlyConfig": "float8"}
_INNER_TYPES = ("PerRow", "PerTensor", "torch.dtype")  # of what torchao's configurations hold: it makes objects of them
_MAX_DEPTH = 8
# Tensors that a library puts beside the weights, by their names: scales, and what else restores the numbers.
_SIDE_TENSOR = re.compile(
    r"\._weight_(scale|zero_point)|\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..{1,40})"
    r"|\.(SCB|weight_format)\Z"
)
_TORCHAO_WEIGHT = "._weight_qdata"
_NF4_SCALE = ".absmax"
_WEIGHT = ".weight"
_LLM_INT8_SCALE = ".SCB"


class PackedWeights(NamedTuple):
    """The weights that a quantised file stores in fewer bits: their quantisation, count and bytes.

    `library`: what alone opens them, as they are; empty: they may be stored in another way when they are loaded.
    """

    quantization: Quantization
    parameters: int
    bytes: int
    library: str = ""


class TensorSize(NamedTuple):
    """What a file's header says of a tensor: its name, its numbers, and the bytes of one."""

    name: str
    numel: int
    itemsize: int


def find_stored_quantization(config: object) -> PackedWeights | None:
    """Return how a `quantization_config` says that weights are stored, uncounted; None for a way that is not opened."""
    entries = cast(dict[str, Any], config) if isinstance(config, dict) else {}
    method = entries.get("quant_method")
    if method == TORCHAO and (quantization := _find_torchao_quantization(entries.get("quant_type"))) is not None:
        return PackedWeights(quantization, 0, 0, TORCHAO)
    if method == BITSANDBYTES and entries.get("load_in_4bit") is True and entries.get("bnb_4bit_quant_type") == "nf4":
        return PackedWeights("nf4", 0, 0, BITSANDBYTES)
    if method == BITSANDBYTES and entries.get("load_in_8bit") is True:
        return PackedWeights("llm_int8", 0, 0, BITSANDBYTES)
    return None


def count_packed(tensors: Iterable[TensorSize], stored: PackedWeights) -> PackedWeights:
    """Return the weights that `stored` names, counted."""
    sizes = {tensor.name: tensor for tensor in tensors}
    weights = [tensor for name, tensor in sizes.items() if _is_weight(name, sizes)]
    beside = [tensor for name, tensor in sizes.items() if _SIDE_TENSOR.search(name)]
    numbers_a_byte = 2 if stored.quantization == "nf4" else 1
    parameters = sum(tensor.numel * tensor.itemsize * numbers_a_byte for tensor in weights)
    return stored._replace(
        parameters=parameters, bytes=sum(tensor.numel * tensor.itemsize for tensor in (*weights, *beside))
    )


def is_packed_tensor(name: str, names: Mapping[str, object]) -> bool:
    """Whether a tensor of a file, one of `names`, belongs to weights in fewer bits."""
    return _is_weight(name, names) or _SIDE_TENSOR.search(name) is not None


def refuse_unopenable(packed: PackedWeights, part_name: str, device: torch.device) -> None:
    """Raise `JobRejected` where this worker lacks what opens a part that is quantised already."""
    if find_spec(packed.library) is None:
        obstacle = f"the package {packed.library} is not installed"
    elif PACKAGES.get(packed.quantization) == packed.library:
        obstacle = find_obstacle(packed.quantization, device)
    else:
        obstacle = ""
    if obstacle:
        sentence = f"The {part_name} of the model is quantised already, as {packed.quantization} by {packed.library}"
        raise JobRejected(f"{sentence}, and cannot be opened here: {obstacle}.", "worker")


def set_compute_format(module: nn.Module, dtype: torch.dtype) -> None:
    """Let torchao's weights compute in `dtype`: they keep the number format of when they were saved otherwise."""
    for layer in module.modules():
        weight: Any = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Linear) or not hasattr(weight, "tensor_data_names") or weight.dtype == dtype:
            continue
        names, attributes = weight.__tensor_flatten__()
        if "dtype" in attributes:
            tensors = {name: getattr(weight, name) for name in names}
            converted = cast(Any, type(weight)).__tensor_unflatten__(tensors, attributes | {"dtype": dtype}, None, None)
            layer.weight = nn.Parameter(converted, requires_grad=False)


def _is_weight(name: str, names: Mapping[str, object]) -> bool:
    if name.endswith(_TORCHAO_WEIGHT) or f"{name}{_NF4_SCALE}" in names:
        return True
    return name.endswith(_WEIGHT) and f"{name.removesuffix(_WEIGHT)}{_LLM_INT8_SCALE}" in names


def _find_torchao_quantization(kind: object) -> Quantization | None:
    entries = cast(dict[str, Any], kind) if isinstance(kind, dict) else {}
    default = entries.get("default")
    if len(entries) != 1 or not isinstance(default, dict):
        return None
    config = cast(dict[str, Any], default)
    return _TORCHAO_TYPES.get(str(config.get("_type"))) if _is_plain(config.get("_data"), _MAX_DEPTH) else None


def _is_plain(value: object, depth: int) -> bool:
    """Whether a value holds no object but of the harmless inner types, and is not nested too deeply."""
    if depth == 0:
        return False
    if isinstance(value, dict):
        entries = cast(dict[str, object], value)
        has_known_type = entries.get("_type", _INNER_TYPES[0]) in _INNER_TYPES
        return has_known_type and all(_is_plain(each, depth - 1) for each in entries.values())
    if isinstance(value, list):
        return all(_is_plain(each, depth - 1) for each in cast(list[object], value))
    return True
