"""LoRA files of a folder: `NAME.safetensors`, or `NAME/` with one such file, as `darkroom train lora` writes it.

Only safetensors: a pickle can run code when it is opened. No name and no link leads out of the folder.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from pathlib import Path
from typing import NamedTuple

from engine.unfit import Unfit

log = logging.getLogger(__name__)

ENDING = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
USUAL = "pytorch_lora_weights.safetensors"  # diffusers' name, preferred among several files
HASHED_WHOLE = 128 * 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.job.Name`


class Addition(NamedTuple):
    """One LoRA file; `revision` changes with its weights."""

    name: str
    path: Path
    revision: str


def additions(folder: Path | None) -> list[Addition]:
    """Return every usable LoRA by name; log the others."""
    found: list[Addition] = []
    for name in sorted(_names(folder)) if folder is not None else ():
        try:
            found.append(addition(folder, name))
        except Unfit as refused:
            log.warning("left out: %s", refused.sentence)
    return found


def addition(folder: Path | None, name: str) -> Addition:
    """Return the LoRA of this name. Raises `Unfit`."""
    try:
        return _addition(folder, name)
    except OSError as error:
        log.warning("the LoRA %s: %s", name[:64], error)
        raise Unfit(f"The LoRA {name[:64]} cannot be read.", "worker") from error


def _addition(folder: Path | None, name: str) -> Addition:
    missing = Unfit(f"This worker has no LoRA called {name[:64]}.", "worker")
    if folder is None or not _NAME.fullmatch(name):
        raise missing
    path = _file(folder, name)
    if path is None:
        raise missing
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Unfit(f"The LoRA {name} is a link that leads out of the folder of LoRAs.", "worker")
    stat = path.stat()
    return Addition(name, path, _revision(path, stat.st_size, stat.st_mtime_ns))


def _names(folder: Path) -> set[str]:
    """Return names of everything that looks like a LoRA, pickles included, so that their refusal is logged."""
    try:
        found = [path for path in folder.iterdir() if _looks_like(path)] if folder.is_dir() else []
        names = {path.name if path.is_dir() else path.stem for path in found}
    except OSError as error:
        log.warning("the folder of LoRAs cannot be read: %s", error)
        return set()
    return {name for name in names if _NAME.fullmatch(name)}


def _looks_like(path: Path) -> bool:
    return path.is_dir() or path.suffix in (ENDING, *PICKLES)


def _file(folder: Path, name: str) -> Path | None:
    """Return the weights of a name; None where there are none. Raises `Unfit` for a pickle, or for several files."""
    if (single := folder / f"{name}{ENDING}").is_file():
        return single
    own = folder / name
    inside = [path for path in own.iterdir() if path.is_file()] if own.is_dir() else []
    weights = [path for path in inside if path.suffix == ENDING]
    if len(weights) > 1:
        weights = [path for path in weights if path.name == USUAL]
        if not weights:
            raise Unfit(f"The LoRA {name} has several files of weights, and none is called {USUAL}.", "worker")
    pickled = [*inside, *(path for ending in PICKLES if (path := folder / f"{name}{ending}").is_file())]
    if not weights and any(path.suffix in PICKLES for path in pickled):
        why = "only as a pickle, which can run code when it is opened: convert it to safetensors"
        raise Unfit(f"The LoRA {name} exists {why}.", "worker")
    return weights[0] if weights else None


@functools.lru_cache(maxsize=1024)
def _revision(path: Path, size: int, changed: int) -> str:
    """Return twelve hex digits over the weights; over 128 MiB only the two ends are hashed."""
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        if size > HASHED_WHOLE:
            digest.update(file.read(HASHED_WHOLE // 2))
            file.seek(-HASHED_WHOLE // 2, 2)
        digest.update(file.read())
    return digest.hexdigest()[:12]
