"""Weights in fewer bits: how files and libraries store them, how many bytes they take, which kind `auto` chooses.

Loads no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook
from torch import nn

from engine.contract import JobRejected, Quantization
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX
from engine.process.memory_requests import QuantizationRequest, QuantizationRequests

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


GROUP_SIZE = 64  # weights of a row that share one scale and zero point in int4


# to which a GPU's layout of int4 pads a matrix
TILE_COLUMNS = 1024


TILE_ROWS = 8


_EMBEDDING = re.compile(
    r"(?:token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias|wte|wpe|embeddings\.\w+"
    r"|class_embedding|patch_embedding|context_embedder_embedding|pos_embed)\.weight$"
)


class Matrix(NamedTuple):
    """A weight of two dimensions that is no embedding: a linear layer's, [out features, in features]."""

    name: str
    rows: int
    columns: int

    @property
    def parameters(self) -> int:
        return self.rows * self.columns


def find_matrix(name: str, shape: Iterable[int]) -> Matrix | None:
    """Return the tensor as the matrix of a linear layer; None for any other tensor."""
    sides = tuple(shape)
    if len(sides) != 2 or not name.endswith(".weight") or _EMBEDDING.search(name):
        return None
    return Matrix(name, sides[0], sides[1])


def is_quantizable(matrix: Matrix, quantization: Quantization) -> bool:
    """Whether the library stores this matrix in fewer bits; it leaves others as they are."""
    if quantization == "int4":
        return matrix.columns % GROUP_SIZE == 0 and matrix.rows % INT4_ROWS == 0
    return quantization != "none"


def count_matrix_bytes(matrix: Matrix, quantization: Quantization, device: torch.device, itemsize: int) -> int:
    """Return the bytes of a matrix; `itemsize`: bytes of a number that is not quantised."""
    if not is_quantizable(matrix, quantization):
        return itemsize * matrix.parameters
    if quantization == "int8":
        return matrix.parameters + 5 * matrix.rows  # a scale in float32 and a zero point for each row
    if quantization in ("float8", "llm_int8"):  # a scale in float32 for each row
        return matrix.parameters + 4 * matrix.rows
    if quantization == "int4":
        return _count_int4_bytes(matrix, device, itemsize)
    scales = math.ceil(matrix.parameters / NF4_BLOCK)
    return math.ceil(matrix.parameters / 2) + scales + 4 * math.ceil(scales / NF4_OUTER_BLOCK)


def _count_int4_bytes(matrix: Matrix, device: torch.device, itemsize: int) -> int:
    rows = matrix.rows
    columns = matrix.columns
    if device.type == "cuda":
        rows = _pad(rows, TILE_ROWS)
        columns = _pad(columns, TILE_COLUMNS)
    return rows * columns // 2 + 2 * itemsize * rows * columns // GROUP_SIZE


def _pad(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


INT4_ROWS = 16  # the kernels of int4 take matrices whose rows are a multiple of this


# weights that share a scale, and scales that share theirs (Dettmers et al. 2023)
NF4_BLOCK = 64


NF4_OUTER_BLOCK = 256


# (network, text encoders), best first: the network shows more of what is lost
AUTO_STEPS: tuple[tuple[Quantization, Quantization], ...] = (
    ("none", "none"),
    ("int8", "none"),
    ("int8", "int8"),
    ("int4", "int8"),
    ("int4", "int4"),
)
FLOAT8_STEPS: tuple[tuple[Quantization, Quantization], ...] = (("float8", "none"), ("float8", "int8"))


@dataclass(frozen=True)
class SizedQuantization:
    """A quantisation of a model, and the bytes of the model with it."""

    quantization: PartQuantization
    size: int


def list_candidates(
    requests: QuantizationRequests, device: torch.device, stored: Quantization = "none"
) -> tuple[PartQuantization, ...]:
    """Return what is asked for, the best first. Raises `JobRejected` where this worker cannot store weights so.

    `stored`: how the network's file stores its weights. A GGUF file stays as it is; float8 may, without a loss.
    """
    for request in (requests.network, requests.text_request):
        if request != "auto":
            refuse_unavailable(request, device)
    steps = AUTO_STEPS if stored != "float8" else (*AUTO_STEPS[:1], *FLOAT8_STEPS, *AUTO_STEPS[1:])
    candidates = [
        PartQuantization(
            "gguf" if stored == "gguf" else _pick(requests.network, network), _pick(requests.text_request, text)
        )
        for network, text in steps
    ]
    available = [
        each for each in candidates if not any(find_obstacle(one, device) for one in (each.network, each.text))
    ]
    return tuple(dict.fromkeys(available))


def choose_quantizations(models: Sequence[Sequence[SizedQuantization]], budget: int) -> list[SizedQuantization]:
    """Choose one candidate of each model, given best first, so that all fit together into `budget` bytes."""
    steps = [0] * len(models)
    while sum(candidates[step].size for candidates, step in zip(models, steps, strict=True)) > budget:
        reducible = [index for index, candidates in enumerate(models) if steps[index] + 1 < len(candidates)]
        if not reducible:
            return [_choose_alone(candidates, budget) for candidates in models]
        largest = min(reducible, key=lambda index: (steps[index], -models[index][steps[index]].size))
        steps[largest] += 1
    return [candidates[step] for candidates, step in zip(models, steps, strict=True)]


def _choose_alone(candidates: Sequence[SizedQuantization], budget: int) -> SizedQuantization:
    """Return the best candidate that fits alone; the smallest if none does."""
    return next((each for each in candidates if each.size <= budget), min(candidates, key=lambda each: each.size))


def _pick(request: QuantizationRequest, automatic: Quantization) -> Quantization:
    return automatic if request == "auto" else request


@dataclass(frozen=True)
class PartQuantization:
    """One quantisation for all networks of a pipeline, another for all its text encoders; the rest has none."""

    network: Quantization = "none"
    text: Quantization = "none"

    def find_for(self, part_name: str) -> Quantization:
        """Return the quantisation of a part, by its name in the pipeline."""
        if part_name in NETWORK_NAMES:
            return self.network
        return self.text if part_name.startswith(TEXT_ENCODER_PREFIX) else "none"

    def __bool__(self) -> bool:
        return self != PartQuantization()

    def __str__(self) -> str:
        parts = (("network", self.network), ("text encoders", self.text))
        named = [f"{part} in {quantization}" for part, quantization in parts if quantization != "none"]
        return " and ".join(named) or "nothing quantised"


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
