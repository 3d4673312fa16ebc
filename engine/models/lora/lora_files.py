"""LoRA files of a folder: `NAME.safetensors`, or `NAME/` with one such file, as `darkroom train lora` writes it.

A model's own folder may hold one more, `turbo/`, which only that model has.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from engine.contract import TURBO_LORA
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged, log_once

DEFAULT_FILE_NAME = "pytorch_lora_weights.safetensors"  # diffusers' name, preferred among several files
FULL_HASH_BYTES = 128 * 2**20


class LoraFile(NamedTuple):
    """One LoRA file; `revision` changes with its weights."""

    name: str
    path: Path
    revision: str


def find_loras(folder: Path | None, model_folder: Path | None = None) -> list[LoraFile]:
    """Return every usable LoRA by name, the model's own first; log the others."""
    if model_folder is None or not has_turbo(model_folder):
        return LORA_KIND.find_all(folder)
    names = LORA_KIND.list_names(folder)
    other_names = [name for name in names if name.lower() != TURBO_LORA]  # prompts name LoRAs in any case
    if len(other_names) < len(names):
        log_once(folder, f"the LoRA {TURBO_LORA} in {folder} is left out for models that have their own")
    return [*_TURBO_KIND.find_all(model_folder, [TURBO_LORA]), *LORA_KIND.find_all(folder, other_names)]


def has_turbo(model_folder: Path | None) -> bool:
    """Whether the model has a turbo LoRA of its own."""
    return model_folder is not None and (model_folder / TURBO_LORA / DEFAULT_FILE_NAME).is_file()


def find_lora(folder: Path | None, name: str, model_folder: Path | None = None) -> LoraFile:
    """Return the LoRA of this name: the model's own before one in the folder of LoRAs. Raises `JobRejected`."""
    if name == TURBO_LORA and has_turbo(model_folder):
        return _TURBO_KIND.find(model_folder, name)
    return LORA_KIND.find(folder, name)


def _read_lora(entry: AddedEntry) -> LoraFile | None:
    weights = entry.list_weights()
    if len(weights) > 1:
        weights = [path for path in weights if path.name == DEFAULT_FILE_NAME]
        if not weights:
            raise entry.reject(f"has several files of weights, and none is called {DEFAULT_FILE_NAME}")
    entry.check_links(weights)
    return LoraFile(entry.name, weights[0], _hash_weights(weights[0])) if weights else None


@cache_while_unchanged
def _hash_weights(path: Path) -> str:
    """Return twelve hex digits over the weights; over 128 MiB only the two ends are hashed."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        if size > FULL_HASH_BYTES:
            digest.update(file.read(FULL_HASH_BYTES // 2))
            file.seek(-FULL_HASH_BYTES // 2, 2)
        digest.update(file.read())
    return digest.hexdigest()[:12]


LORA_KIND = AddedKind("LoRA", _read_lora)
_TURBO_KIND = AddedKind("LoRA", _read_lora, forms=("folder",))  # in a model's own folder
