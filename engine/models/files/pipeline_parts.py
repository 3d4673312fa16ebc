"""Inspects a diffusers folder: its parts, their classes, and the sizes of their weights.

Reads configurations and safetensors headers; loads no weights and runs no code from the folder. Refuses unusable models
before anything is loaded.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError, safe_open
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from engine.contract import Dtype, JobRejected, Quantization
from engine.models.files.model_source import UNUSED_PARTS, refuse_unsafe_part_names
from engine.models.quantization import (
    Matrix,
    PackedWeights,
    TensorSize,
    count_packed,
    find_matrix,
    find_stored_quantization,
    is_packed_tensor,
)

LIBRARIES = ("diffusers", "transformers")
# classes without weights that pick another class
AUTO_CLASSES = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")
PICKLE_PATTERNS = ("*.bin", "*.ckpt", "*.pt", "*.pth")
SAFETENSORS_DTYPES: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16"}
_ITEMSIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class Part:
    """A part with weights: its class, parameter count, and the number format of most parameters."""

    name: str
    part_class: Any  # the class
    parameters: int
    stored_dtype: Dtype
    variant: str | None = None  # infix of its file names, as in `model.fp16.safetensors`
    files: tuple[Path, ...] = ()  # the weights
    matrices: tuple[Matrix, ...] = ()  # those of linear layers, which can be quantised
    packed: PackedWeights | None = None  # of a file that is quantised already

    @property
    def fixed_quantization(self) -> Quantization | None:
        """How the part is stored whatever is asked for, since only its library opens it; None: as is asked for."""
        return self.packed.quantization if self.packed is not None and self.packed.library else None


class HeaderTensor(NamedTuple):
    """A tensor in a file; `dtype` as safetensors names it."""

    shape: torch.Size
    dtype: str


class WeightCount(NamedTuple):
    """What the headers of weight files say: parameters, most common number format, matrices of linear layers."""

    parameters: int
    stored_dtype: Dtype
    matrices: tuple[Matrix, ...]


def read_index(folder: Path, name: str) -> dict[str, Any]:
    """Return the folder's `model_index.json`. Raises `JobRejected`."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise JobRejected(f"The model {name} has no model_index.json that can be read.", "model") from error
    entries = cast(dict[str, Any], index) if isinstance(index, dict) else {}
    class_name = entries.get("_class_name")
    if isinstance(class_name, list):
        raise JobRejected(f"The model {name} brings its own code, which is not run.", "model")
    if not isinstance(class_name, str):
        raise JobRejected(f"The model {name} does not say which pipeline it is (model_index.json).", "model")
    refuse_unsafe_part_names(entries, name)
    return entries


def find_pipeline_class(index: dict[str, Any], name: str) -> Any:
    """Return the pipeline's class. Raises `JobRejected` where diffusers has no such pipeline."""
    pipeline_type = _get_member("diffusers", index["_class_name"])
    if not isinstance(pipeline_type, type) or not issubclass(pipeline_type, DiffusionPipeline):
        raise JobRejected(f"The model {name} is of a kind that diffusers does not know.", "model")
    return pipeline_type


def find_part_classes(index: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the class of every used part. Raises `JobRejected` for a foreign one, or uninspected weights."""
    part_classes: dict[str, Any] = {}
    for part, entry in index.items():
        if part in UNUSED_PARTS or not isinstance(entry, list) or entry == [None, None]:
            continue
        names = [str(each) for each in cast(list[object], entry)]
        library, class_name = names if len(names) == 2 else ("", "")
        part_class = _get_member(library, class_name) if library in LIBRARIES else None
        if not isinstance(part_class, type):
            qualified_name = f"{library}.{class_name}"[:80]
            raise JobRejected(
                f"The {part} of the model {name} is {qualified_name}, which is not part of diffusers or transformers.",
                "model",
            )
        if not _is_allowed_class(part_class):
            raise JobRejected(
                f"The {part} of the model {name} is a {class_name[:80]}, which cannot be a part here.", "model"
            )
        part_classes[part] = part_class
    return part_classes


def list_parts(folder: Path, part_classes: dict[str, Any]) -> list[Part]:
    """Return the parts with weights. Raises `JobRejected` where weights are missing or not in safetensors."""
    inspected_parts = (_inspect_part(folder / name, part_class) for name, part_class in part_classes.items())
    return [part for part in inspected_parts if part is not None]


def refuse_pickles(folder: Path, part_classes: Mapping[str, Any]) -> None:
    """Refuse pickles in folders whose weights are not inspected. Raises `JobRejected`."""
    for name in part_classes:
        if any(each for pattern in PICKLE_PATTERNS for each in (folder / name).glob(pattern)):
            reason = "which can run code when it is opened: take it away, or convert it to safetensors"
            raise JobRejected(f"The folder {name} of the model's configurations holds a pickle, {reason}.", "model")


def read_names(path: Path) -> list[str]:
    """Return the names of a safetensors file's tensors. Raises `SafetensorError` or OSError."""
    with cast(Any, safe_open)(path, framework="pt") as file:
        return list(file.keys())


def read_header(path: Path) -> dict[str, HeaderTensor]:
    """Return what the header of a safetensors file says of each tensor. Raises `SafetensorError` or OSError."""
    with cast(Any, safe_open)(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        return {name: HeaderTensor(torch.Size(each.get_shape()), each.get_dtype()) for name, each in slices.items()}


def count_parameters(files: list[Path]) -> WeightCount:
    """Count the files' parameters. Raises `SafetensorError` or OSError."""
    counts = Counter[str]()
    matrices = list[Matrix | None]()
    for name, (shape, dtype) in (entry for path in files for entry in read_header(path).items()):
        counts[dtype] += shape.numel()
        matrices.append(find_matrix(name, shape))
    return WeightCount(sum(counts.values()), find_most_common(counts), tuple(each for each in matrices if each))


def find_most_common(counts: Counter[str]) -> Dtype:
    """Return the most common number format of weights, counted by its name in safetensors."""
    return SAFETENSORS_DTYPES.get(counts.most_common(1)[0][0] if counts else "", "float32")


def _is_allowed_class(part_class: type) -> bool:
    """Whether it is one network, which is inspected, or has no weights.

    It may be no pipeline, and no auto class but those in `AUTO_CLASSES`.
    """
    mixins = (ProcessorMixin, FeatureExtractionMixin, ImageProcessingMixin)
    weightless = (SchedulerMixin, PreTrainedTokenizerBase, *mixins)
    return issubclass(part_class, (torch.nn.Module, *weightless)) or part_class.__name__ in AUTO_CLASSES


def _get_member(library: str, name: str) -> Any:
    return getattr(importlib.import_module(library), name, None)


def _inspect_part(folder: Path, part_class: Any) -> Part | None:
    if not issubclass(part_class, torch.nn.Module):
        return None
    stored = _check_config(folder)
    files, variant = find_weight_files(folder)
    try:
        count, packed = (count_parameters(files), None) if stored is None else _count_packed_part(files, stored)
    except (OSError, SafetensorError) as error:
        raise JobRejected(
            f"The weights of the model's {folder.name} cannot be read: they are no safetensors.", "model"
        ) from error
    return Part(
        folder.name, part_class, count.parameters, count.stored_dtype, variant, tuple(files), count.matrices, packed
    )


def _count_packed_part(files: list[Path], stored: PackedWeights) -> tuple[WeightCount, PackedWeights]:
    header = {name: each for path in files for name, each in read_header(path).items()}
    sizes = [TensorSize(name, each.shape.numel(), _ITEMSIZES.get(each.dtype, 1)) for name, each in header.items()]
    packed = count_packed(sizes, stored)
    counts = Counter[str]()
    for name, (shape, dtype) in header.items():
        if not is_packed_tensor(name, header):
            counts[dtype] += shape.numel()
    return WeightCount(sum(counts.values()) + packed.parameters, find_most_common(counts), ()), packed


def _check_config(folder: Path) -> PackedWeights | None:
    """Refuse configurations that make the libraries open other weights than the inspected ones, even a pickle.

    Returns how the part is quantised already; None: it is not.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None  # reported when the part is loaded
    names = cast(dict[str, object], config) if isinstance(config, dict) else {}
    if (folder / "adapter_config.json").exists() or "transformers_weights" in names:
        raise JobRejected(
            f"The {folder.name} of the model names weights besides its own, which are not opened.", "model"
        )
    if not (config := names.get("quantization_config")):
        return None
    if (stored := find_stored_quantization(config)) is None:  # of many libraries, some of which fetch code
        sentence = f"The {folder.name} of the model is quantised already, in a way that is not opened"
        raise JobRejected(f"{sentence}: take the unquantised model with --quantize, or a GGUF file.", "model")
    return stored


def find_weight_files(folder: Path) -> tuple[list[Path], str | None]:
    """Return the weight files: those of an index, else the one of the first variant."""
    files = sorted(folder.glob("*.safetensors"))
    if index_files := sorted(folder.glob("*.safetensors.index*.json"), key=lambda path: len(path.name)):
        shards = [_list_shards(folder, each) for each in index_files]  # check all: the library chooses one
        return shards[0], _parse_variant(index_files[0].name.replace(".safetensors.index", ""))
    if files:
        first = min(files, key=lambda path: path.name.count("."))
        return [first], _parse_variant(first.name.removesuffix(".safetensors"))
    pickles = [each for pattern in PICKLE_PATTERNS for each in folder.glob(pattern)]
    reason = "only as a pickle, which can run code when it is opened" if pickles else "not at all"
    raise JobRejected(
        f"The model holds the weights of its {folder.name} {reason}: convert them to safetensors.", "model"
    )


def _parse_variant(name: str) -> str | None:
    """Return `fp16` for `model.fp16` and `model.fp16.json`."""
    return name.removesuffix(".json").partition(".")[2] or None


def _list_shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = {str(each) for each in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JobRejected(f"The list of the weights of the model's {folder.name} cannot be read.", "model") from error
    if not names:
        raise JobRejected(f"The list of the weights of the model's {folder.name} names no file.", "model")
    for name in sorted(names):
        if "/" in name or "\\" in name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise JobRejected(f"The model lacks {name[:100]}, a file of the weights of its {folder.name}.", "model")
    return [folder / name for name in sorted(names)]
