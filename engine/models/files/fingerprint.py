"""Model fingerprints: they change with the weights, and calibrations and recipes are bound to them. Loads no model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from engine.contract.rejection import JobRejected

FINGERPRINT_PATTERNS = (
    "*.json",
    "*.safetensors",
    "merges.txt",
    "vocab.txt",
    "*.model",
)  # configurations, weights, tokenizers
FULL_HASH_BYTES = 128 * 2**20
MAX_HEADER_BYTES = 100_000_000  # bytes, the format's limit
EDGE_BYTES = 4096  # bytes hashed at either end of each weight of a larger file
PART_FOLDERS = (
    "decoder",
    "scheduler",
    "substitutes",
    "text_encoder",
    "tokenizer",
    "unet",
    "vae",
)  # hashed folders: a trained model's folder also holds its run
_PART_NAME = re.compile(r"[A-Za-z0-9_]+")  # other names may lead out of the model's folder
UNUSED_PARTS = ("feature_extractor", "image_encoder", "safety_checker")


def fingerprint_folder(folder: Path) -> str:
    """Return twelve hex digits over configurations, weights and tokenizers.

    Of files over 128 MiB only each weight's ends are hashed. Raises `JobRejected` where the index is unreadable, or
    leads out of the folder.
    """
    digest = hashlib.sha256()
    parts = [folder / part for part in _list_part_folders(folder)]
    files = (each for part in parts for pattern in FINGERPRINT_PATTERNS for each in part.rglob(pattern))
    for path in sorted([*folder.glob("model_index.json"), *files]):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        _hash_file(path, digest.update)
    return digest.hexdigest()[:12]


def refuse_unsafe_part_names(index: Mapping[str, Any], name: str) -> None:
    """Raise `JobRejected` where a part's name could lead out of the model's folder."""
    for part, entry in index.items():
        if isinstance(entry, list) and not _PART_NAME.fullmatch(part):
            raise JobRejected(f"The model {name} has a part called {part[:80]!r}, which is no name of a part.", "model")


def fingerprint_file(path: Path) -> str:
    """Return the fingerprint of a single file."""
    digest = hashlib.sha256(f"{path.stat().st_size}\n".encode())
    _hash_file(path, digest.update)
    return digest.hexdigest()[:12]


def _hash_file(path: Path, update: Callable[[bytes], None]) -> None:
    with path.open("rb") as file:
        if path.stat().st_size <= FULL_HASH_BYTES:
            update(file.read())
        elif weights := _locate_weights(file):
            update(_read_header(file))
            for begin, end in weights:
                _hash_ends(file, begin, end, EDGE_BYTES, update)
        else:
            _hash_ends(file, 0, path.stat().st_size, FULL_HASH_BYTES // 2, update)


def _hash_ends(file: BinaryIO, begin: int, end: int, length: int, update: Callable[[bytes], None]) -> None:
    for start in (begin, max(begin, end - length)):
        file.seek(start)
        update(file.read(min(length, end - begin)))


def _locate_weights(file: BinaryIO) -> list[tuple[int, int]]:
    """Return the (begin, end) of each weight in a safetensors file; empty where it is no such file."""
    try:
        header = _read_header(file)
        entries = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return sorted((8 + len(header) + int(begin), 8 + len(header) + int(end)) for begin, end in entries)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def _read_header(file: BinaryIO) -> bytes:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    return file.read(length) if length <= MAX_HEADER_BYTES else b""


def _list_part_folders(folder: Path) -> list[str]:
    """Return the part folders that the index names, and the usual ones."""
    try:
        index: Any = json.loads((folder / "model_index.json").read_bytes())
    except FileNotFoundError:
        index = {}
    except (OSError, ValueError, RecursionError) as error:
        raise JobRejected(f"The model {folder.name} has no model_index.json that can be read.", "model") from error
    if not isinstance(index, dict):
        raise JobRejected(f"The model {folder.name} does not say which pipeline it is (model_index.json).", "model")
    entries = cast(dict[str, object], index)
    refuse_unsafe_part_names(entries, folder.name)
    named = (name for name, entry in entries.items() if isinstance(entry, list) and name not in UNUSED_PARTS)
    return sorted({*PART_FOLDERS, *named})


def combine_fingerprints(*fingerprints: str) -> str:
    """Combine several fingerprints into one."""
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:12]
