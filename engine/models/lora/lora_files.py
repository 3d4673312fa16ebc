"""LoRA files of a folder: `NAME.safetensors`, or `NAME/` with one such file, as `darkroom train lora` writes it.

A model's own folder may hold one more, `turbo/`, which only that model has. Only safetensors are accepted: a pickle can
run code when it is opened. No name and no link leads out of the folder.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from pathlib import Path
from typing import NamedTuple

from engine.contract import TURBO_LORA
from engine.contract.rejection import JobRejected

log = logging.getLogger(__name__)

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
DEFAULT_FILE_NAME = "pytorch_lora_weights.safetensors"  # diffusers' name, preferred among several files
FULL_HASH_BYTES = 128 * 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`


class LoraFile(NamedTuple):
    """One LoRA file; `revision` changes with its weights."""

    name: str
    path: Path
    revision: str


def find_loras(folder: Path | None, model_folder: Path | None = None) -> list[LoraFile]:
    """Return every usable LoRA by name, the model's own first; log the others."""
    names = [] if folder is None else sorted(_list_names(folder))
    if has_turbo(model_folder):
        other_names = [name for name in names if name.lower() != TURBO_LORA]  # prompts name LoRAs in any case
        if folder is not None and len(other_names) < len(names):
            _log_replaced(folder)
        names = [TURBO_LORA, *other_names]
    loras: list[LoraFile] = []
    for name in names:
        try:
            loras.append(find_lora(folder, name, model_folder))
        except JobRejected as rejection:
            log.warning("left out: %s", rejection.sentence)
    return loras


def has_turbo(model_folder: Path | None) -> bool:
    """Whether the model has a turbo LoRA of its own."""
    return model_folder is not None and (model_folder / TURBO_LORA / DEFAULT_FILE_NAME).is_file()


@functools.cache
def _log_replaced(folder: Path) -> None:
    """Log once that models with a turbo LoRA of their own do not use the folder's."""
    log.warning("the LoRA %s in %s is left out for models that have their own", TURBO_LORA, folder)


def find_lora(folder: Path | None, name: str, model_folder: Path | None = None) -> LoraFile:
    """Return the LoRA of this name: the model's own before one in the folder of LoRAs. Raises `JobRejected`."""
    try:
        if model_folder is not None and name == TURBO_LORA and has_turbo(model_folder):
            return _open_lora(model_folder, name, model_folder / TURBO_LORA / DEFAULT_FILE_NAME)
        return _find_lora(folder, name)
    except OSError as error:
        log.warning("the LoRA %s: %s", name[:64], error)
        raise JobRejected(f"The LoRA {name[:64]} cannot be read.", "worker") from error


def _find_lora(folder: Path | None, name: str) -> LoraFile:
    not_found = JobRejected(f"This worker has no LoRA called {name[:64]}.", "worker")
    if folder is None or not _NAME.fullmatch(name):
        raise not_found
    path = _find_weights(folder, name)
    if path is None:
        raise not_found
    return _open_lora(folder, name, path)


def _open_lora(folder: Path, name: str, path: Path) -> LoraFile:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise JobRejected(f"The LoRA {name} is a link that leads out of the folder that it is in.", "worker")
    stat = path.stat()
    return LoraFile(name, path, _hash_weights(path, stat.st_size, stat.st_mtime_ns))


def _list_names(folder: Path) -> set[str]:
    """Return names of everything that looks like a LoRA, pickles included, so that their refusal is logged."""
    try:
        paths = [path for path in folder.iterdir() if _is_candidate(path)] if folder.is_dir() else []
        names = {path.name if path.is_dir() else path.stem for path in paths}
    except OSError as error:
        log.warning("the folder of LoRAs cannot be read: %s", error)
        return set()
    return {name for name in names if _NAME.fullmatch(name)}


def _is_candidate(path: Path) -> bool:
    return path.is_dir() or path.suffix in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)


def _find_weights(folder: Path, name: str) -> Path | None:
    """Return the weights of a name; None where there are none. Raises `JobRejected` for a pickle or several files."""
    if (single := folder / f"{name}{SAFETENSORS_SUFFIX}").is_file():
        return single
    lora_folder = folder / name
    files = [path for path in lora_folder.iterdir() if path.is_file()] if lora_folder.is_dir() else []
    weights = [path for path in files if path.suffix == SAFETENSORS_SUFFIX]
    if len(weights) > 1:
        weights = [path for path in weights if path.name == DEFAULT_FILE_NAME]
        if not weights:
            raise JobRejected(
                f"The LoRA {name} has several files of weights, and none is called {DEFAULT_FILE_NAME}.", "worker"
            )
    candidates = [*files, *(path for suffix in PICKLE_SUFFIXES if (path := folder / f"{name}{suffix}").is_file())]
    if not weights and any(path.suffix in PICKLE_SUFFIXES for path in candidates):
        reason = "only as a pickle, which can run code when it is opened: convert it to safetensors"
        raise JobRejected(f"The LoRA {name} exists {reason}.", "worker")
    return weights[0] if weights else None


@functools.lru_cache(maxsize=1024)
def _hash_weights(path: Path, size: int, mtime_ns: int) -> str:
    """Return twelve hex digits over the weights; over 128 MiB only the two ends are hashed."""
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        if size > FULL_HASH_BYTES:
            digest.update(file.read(FULL_HASH_BYTES // 2))
            file.seek(-FULL_HASH_BYTES // 2, 2)
        digest.update(file.read())
    return digest.hexdigest()[:12]
