"""Headers and weights of files in safetensors and GGUF, read one at a time.

So only one slice is mapped at once, where the libraries map the whole file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, ItemsView, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open

from engine.contract import Dtype, JobRejected
from engine.models.files.pipeline_parts import SAFETENSORS_DTYPES, Part
from engine.models.quantization import Matrix, PackedWeights, find_matrix

SLICE_BYTES = 256 * 2**20  # bytes mapped at once


def read_tensors(
    files: Sequence[Path],
    dtype: torch.dtype,
    unchanged_names: Collection[str] = (),
    is_selected: Callable[[str], bool] = lambda key: True,
) -> dict[str, torch.Tensor]:
    """Return the weights that `is_selected` accepts, copied in `dtype`; `unchanged_names` keep their format."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        for keys in _split_keys(path, is_selected):
            with cast(Any, safe_open)(path, framework="pt") as file:  # reopened for each slice, to unmap the last one
                for key in keys:
                    tensor: torch.Tensor = file.get_tensor(key)
                    keeps_dtype = not tensor.is_floating_point() or any(name in key for name in unchanged_names)
                    tensors[key] = tensor.clone() if keeps_dtype else tensor.to(dtype, copy=True)
                    del tensor
    return tensors


def _split_keys(path: Path, is_selected: Callable[[str], bool]) -> Iterator[list[str]]:
    """Yield names of a file's tensors, about `SLICE_BYTES` at a time."""
    keys = list[str]()
    size = 0
    with cast(Any, safe_open)(path, framework="pt") as file:
        lengths: dict[str, int] = {
            key: 4 * torch.Size(file.get_slice(key).get_shape()).numel()
            for key in file.keys()  # noqa: SIM118 - the handle is no mapping
            if is_selected(key)
        }
    for key, length in lengths.items():
        if keys and size + length > SLICE_BYTES:
            yield keys
            keys = []
            size = 0
        keys.append(key)
        size += length
    if keys:
        yield keys


# magic, version, number of tensors, number of values
MAGIC = b"GGUF"
COUNTS_LENGTH = 24
MAX_ENTRIES = 100_000  # tensors or values of a header
PLAIN_TYPES = ("F32", "F16")  # weights that the loader does not keep in their file's format


def count_gguf_weights(path: Path, name: str) -> tuple[int, PackedWeights]:
    """Return the file's number of weights, and those that stay quantised. Raises `JobRejected`."""
    if find_spec("gguf") is None:
        raise JobRejected(f"The model {name} is a GGUF file, which needs the package gguf.", "worker")
    unreadable = JobRejected(
        f"The model {name} cannot be read: its file is no GGUF of known kinds of weights.", "model"
    )
    try:
        _check_counts(path)
        reader: Any = import_module("gguf").GGUFReader(path)
        tensors = [(each.tensor_type.name, int(each.n_elements), int(each.n_bytes)) for each in reader.tensors]
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError) as error:
        raise unreadable from error
    packed = [(count, size) for kind, count, size in tensors if kind not in PLAIN_TYPES]
    packed_weights = PackedWeights("gguf", sum(count for count, _ in packed), sum(size for _, size in packed))
    return sum(count for _, count, _ in tensors), packed_weights


def _check_counts(path: Path) -> None:
    """Refuse a file whose header claims more than any model has, before the library follows it."""
    with path.open("rb") as file:
        head = file.read(COUNTS_LENGTH)
    counts = [int.from_bytes(head[start : start + 8], "little") for start in (8, 16)]
    if len(head) < COUNTS_LENGTH or head[:4] != MAGIC or max(counts) > MAX_ENTRIES:
        raise ValueError("no GGUF file")


PartGroup = Literal["network", "vae", "text_encoder"]
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder.")
AUTOENCODER_PREFIXES = ("first_stage_model.", "vae.")
FLOAT8 = "F8_E4M3"
SCALE_SUFFIXES = (".scale_weight", ".weight_scale", "scaled_fp8")  # of weights that mean nothing without their scales


@dataclass
class WeightGroup:
    """The weights of one part: how many in each number format, and the matrices of linear layers."""

    counts: Counter[str] = field(default_factory=Counter[str])
    matrices: list[Matrix] = field(default_factory=list[Matrix])

    def make_part(self, name: str, part_class: Any = None, files: tuple[Path, ...] = ()) -> Part:
        """Return the part. One that is mostly float8 counts as bfloat16, in which it would be computed."""
        most_common = self.counts.most_common(1)[0][0]
        stored_dtype: Dtype = "bfloat16" if most_common == FLOAT8 else SAFETENSORS_DTYPES.get(most_common, "float32")
        float8_count = self.counts[FLOAT8]
        packed = PackedWeights("float8", float8_count, float8_count) if most_common == FLOAT8 else None
        return Part(
            name,
            part_class,
            sum(self.counts.values()),
            stored_dtype,
            files=files,
            matrices=tuple(self.matrices),
            packed=packed,
        )


def read_groups(path: Path, name: str) -> dict[PartGroup, WeightGroup]:
    """Return the groups that the file has. Raises `JobRejected` where it cannot be read, or its weights are scaled."""
    groups: dict[PartGroup, WeightGroup] = {}
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                _refuse_scale(key, name)
                tensor = file.get_slice(key)
                group = groups.setdefault(find_group(key), WeightGroup())
                shape = torch.Size(tensor.get_shape())
                group.counts[tensor.get_dtype()] += shape.numel()
                if (matrix := find_matrix(key, shape)) is not None:
                    group.matrices.append(matrix)
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The model {name} cannot be read: its file is no safetensors.", "model") from error
    return groups


def find_group(key: str) -> PartGroup:
    """Return the part that a weight belongs to, by its name."""
    if key.startswith(TEXT_ENCODER_PREFIXES):
        return "text_encoder"
    return "vae" if key.startswith(AUTOENCODER_PREFIXES) else "network"


def _refuse_scale(key: str, name: str) -> None:
    if key.endswith(SCALE_SUFFIXES):
        sentence = f"The model {name} stores fp8 weights with scales of their own, which is not supported"
        raise JobRejected(f"{sentence}: take one with plain fp8 weights, or GGUF.", "model")


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
