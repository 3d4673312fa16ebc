"""Files of textual inversions in a folder: `NAME.safetensors` (Gal et al. 2022).

A file holds one tensor `[vectors, features]` (Stable Diffusion 1.x and 2.x), or one for each CLIP of SDXL, called
`clip_l` and `clip_g`. Sizes are checked in the header before a tensor is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open

from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged, log_once, reject_added

NOUN = "textual inversion"
MAX_FILE_BYTES = 8 * 2**20  # 64 vectors of SDXL are 0.5 MB
MAX_VECTORS = 64  # of one word: a chunk of a prompt has 75 tokens
MAX_TENSORS = 4
_FLOAT_DTYPES = ("F16", "BF16", "F32")


class EmbeddingFile(NamedTuple):
    """One textual inversion. `widths`: the features of each tensor. `revision` changes with its content."""

    name: str
    path: Path
    revision: str
    widths: dict[str, int]


def find_embeddings(folder: Path | None) -> list[EmbeddingFile]:
    """Return every usable textual inversion by name; log the others."""
    by_name: dict[str, EmbeddingFile] = {}
    for embedding in EMBEDDING_KIND.find_all(folder):
        if by_name.setdefault(embedding.name.lower(), embedding) is not embedding:  # prompts name them in any case
            log_once(folder, f"left out: there is already a {NOUN} {embedding.name} in other capitals")
    return list(by_name.values())


def read_vectors(file: EmbeddingFile) -> dict[str, torch.Tensor]:
    """Return the vectors `[vectors, features]` of each tensor, float32. Raises `JobRejected`."""
    try:
        with cast(Any, safe_open)(file.path, framework="pt") as opened:
            tensors: dict[str, torch.Tensor] = {name: opened.get_tensor(name).float() for name in file.widths}
    except (OSError, SafetensorError) as error:
        raise reject_added(NOUN, file.name, "cannot be read as safetensors") from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise reject_added(NOUN, file.name, "holds numbers that are not finite")
    return {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in tensors.items()}


def _read_embedding(entry: AddedEntry) -> EmbeddingFile:
    """Return the textual inversion, its header checked."""
    entry.check_links([entry.path])
    if entry.path.stat().st_size > MAX_FILE_BYTES:
        raise entry.reject(f"has more than {MAX_FILE_BYTES >> 20} MiB, so it is no textual inversion")
    revision, widths = _inspect(entry.path)
    return EmbeddingFile(entry.name, entry.path, revision, widths)


@cache_while_unchanged
def _inspect(path: Path) -> tuple[str, dict[str, int]]:
    """Return the revision (twelve hex digits over the file) and the tensors' widths.

    Raises `JobRejected`, OSError or `SafetensorError`.
    """
    with cast(Any, safe_open)(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        widths = {name: _read_width(path.stem, part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    if not 1 <= len(widths) <= MAX_TENSORS:
        raise reject_added(NOUN, path.stem, "is no textual inversion")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12], widths


def _read_width(name: str, shape: list[int], dtype: str) -> int:
    vectors, features = (1, *shape)[-2:] if 1 <= len(shape) <= 2 else (0, 0)
    if dtype not in _FLOAT_DTYPES or not 1 <= vectors <= MAX_VECTORS or features < 1:
        raise reject_added(NOUN, name, f"is no textual inversion of at most {MAX_VECTORS} vectors")
    return features


EMBEDDING_KIND = AddedKind(NOUN, _read_embedding, forms=("file",))
