"""The LoRAs of a folder: `NAME.safetensors`, or a folder `NAME` with one such file, as `darkroom train lora` writes it.

Weights are safetensors or nothing: a pickle can run code when it is opened. No name and no link leads out of the
folder. Knows files and names; nothing of networks.
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
USUAL = "pytorch_lora_weights.safetensors"  # of several files in one folder, diffusers' own
HASHED_WHOLE = 128 * 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.job.Name`


class Addition(NamedTuple):
    """One file of weights; `revision` changes with them."""

    name: str
    path: Path
    revision: str


def additions(folder: Path | None) -> list[Addition]:
    """Every one that can be opened, by name; what cannot is named in the log."""
    found: list[Addition] = []
    for name in sorted(_names(folder)) if folder is not None else ():
        try:
            found.append(addition(folder, name))
        except Unfit as refused:
            log.warning("left out: %s", refused.sentence)
    return found


def addition(folder: Path | None, name: str) -> Addition:
    """The one of this name. Raises `Unfit`."""
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
    """Of everything that looks like a LoRA, pickles included: that they are refused shall be said."""
    try:
        found = [path for path in folder.iterdir() if _looks_like(path)] if folder.is_dir() else []
        names = {path.name if path.is_dir() else path.stem for path in found}
    except OSError as error:
        log.warning("the folder of LoRAs is left out: %s", error)
        return set()
    return {name for name in names if _NAME.fullmatch(name)}


def _looks_like(path: Path) -> bool:
    return path.is_dir() or path.suffix in (ENDING, *PICKLES)


def _file(folder: Path, name: str) -> Path | None:
    """The weights of a name; None where there is nothing. Raises `Unfit` where that is a pickle, or several."""
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
        raise Unfit(f"The LoRA {name} is there {why}.", "worker")
    return weights[0] if weights else None


@functools.lru_cache(maxsize=1024)
def _revision(path: Path, size: int, changed: int) -> str:
    """Twelve hex digits over the weights; of files over 128 MiB the two ends only, as of models."""
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        if size > HASHED_WHOLE:
            digest.update(file.read(HASHED_WHOLE // 2))
            file.seek(-HASHED_WHOLE // 2, 2)
        digest.update(file.read())
    return digest.hexdigest()[:12]
