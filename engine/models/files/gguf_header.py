"""What a GGUF file's header says of its weights. Reads no weights.

GGUF is the file format of llama.cpp (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): blocks of quantised
weights, each with scales of its own.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.contract.rejection import JobRejected
from engine.models.quantization.stored_quantization import PackedWeights

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
