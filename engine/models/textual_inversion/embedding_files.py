"""Files of textual inversions in a folder: `NAME.safetensors` (Gal et al. 2022).

A file holds one tensor `[vectors, features]` (Stable Diffusion 1.x and 2.x), or one for each CLIP of SDXL, called
`clip_l` and `clip_g`. Only safetensors are accepted: a pickle can run code when it is opened. Sizes are checked in the
header before a tensor is read. No name and no link leads out of the folder.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open

from engine.contract.rejection import JobRejected

log = logging.getLogger(__name__)

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
MAX_FILE_BYTES = 8 * 2**20  # 64 vectors of SDXL are 0.5 MB
MAX_VECTORS = 64  # of one word: a chunk of a prompt has 75 tokens
MAX_TENSORS = 4
_FLOAT_DTYPES = ("F16", "BF16", "F32")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`


class EmbeddingFile(NamedTuple):
    """One textual inversion. `widths`: the features of each tensor. `revision` changes with its content."""

    name: str
    path: Path
    revision: str
    widths: dict[str, int]


def find_embeddings(folder: Path | None) -> list[EmbeddingFile]:
    """Return every usable textual inversion by name; log the others."""
    embeddings: list[EmbeddingFile] = []
    seen_names: set[str] = set()
    for name in sorted(_list_names(folder)):
        try:
            embedding = find_embedding(folder, name)
        except JobRejected as rejection:
            log.warning("left out: %s", rejection.sentence)
            continue
        if name.lower() in seen_names:  # prompts name them in any case
            log.warning("left out: there is already a textual inversion %s in other capitals", name)
            continue
        seen_names.add(name.lower())
        embeddings.append(embedding)
    return embeddings


def find_embedding(folder: Path | None, name: str) -> EmbeddingFile:
    """Return the textual inversion of this name, its header checked. Raises `JobRejected`."""
    if folder is None or not _NAME.fullmatch(name):
        raise _reject_missing(name)
    path = folder / f"{name}{SAFETENSORS_SUFFIX}"
    try:
        if not path.is_file():
            _refuse_pickle(folder, name)
            raise _reject_missing(name)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise _reject(name, "is a link that leads out of the folder that it is in")
        stat = path.stat()
        if stat.st_size > MAX_FILE_BYTES:
            raise _reject(name, f"has more than {MAX_FILE_BYTES >> 20} MiB, so it is no textual inversion")
        revision, widths = _inspect(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, SafetensorError) as error:
        raise _reject(name, "cannot be read as safetensors") from error
    return EmbeddingFile(name, path, revision, widths)


def read_vectors(file: EmbeddingFile) -> dict[str, torch.Tensor]:
    """Return the vectors `[vectors, features]` of each tensor, float32. Raises `JobRejected`."""
    try:
        with cast(Any, safe_open)(file.path, framework="pt") as opened:
            tensors: dict[str, torch.Tensor] = {name: opened.get_tensor(name).float() for name in file.widths}
    except (OSError, SafetensorError) as error:
        raise _reject(file.name, "cannot be read as safetensors") from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise _reject(file.name, "holds numbers that are not finite")
    return {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in tensors.items()}


@functools.lru_cache(maxsize=1024)
def _inspect(path: Path, size: int, mtime_ns: int) -> tuple[str, dict[str, int]]:
    """Return the revision (twelve hex digits over the file) and the tensors' widths; cached while the file is the same.

    Raises `JobRejected`, OSError or `SafetensorError`.
    """
    with cast(Any, safe_open)(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        widths = {name: _read_width(path.stem, part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    if not 1 <= len(widths) <= MAX_TENSORS:
        raise _reject(path.stem, "is no textual inversion")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12], widths


def _read_width(name: str, shape: list[int], dtype: str) -> int:
    vectors, features = (1, *shape)[-2:] if 1 <= len(shape) <= 2 else (0, 0)
    if dtype not in _FLOAT_DTYPES or not 1 <= vectors <= MAX_VECTORS or features < 1:
        raise _reject(name, f"is no textual inversion of at most {MAX_VECTORS} vectors")
    return features


def _list_names(folder: Path | None) -> set[str]:
    """Return the names of all candidates, pickles included, so that their refusal is logged."""
    suffixes = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)
    try:
        paths = list(folder.iterdir()) if folder is not None and folder.is_dir() else []
    except OSError as error:
        log.warning("the folder of textual inversions cannot be read: %s", error)
        return set()
    return {path.stem for path in paths if path.suffix in suffixes and _NAME.fullmatch(path.stem)}


def _refuse_pickle(folder: Path, name: str) -> None:
    if any((folder / f"{name}{suffix}").is_file() for suffix in PICKLE_SUFFIXES):
        reason = "exists only as a pickle, which can run code when it is opened: convert it to safetensors"
        raise _reject(name, reason)


def _reject_missing(name: str) -> JobRejected:
    return JobRejected(f"This worker has no textual inversion called {name[:64]}.", "worker")


def _reject(name: str, reason: str) -> JobRejected:
    return JobRejected(f"The textual inversion {name[:64]} {reason}.", "worker")
