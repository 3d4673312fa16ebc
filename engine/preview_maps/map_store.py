"""Stores fitted preview maps: in the data folder one file per model revision, and in a model's folder its own."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.preview_maps.latent_map import FloatArray, LatentMap
from engine.process.atomic_file import write_atomically

log = logging.getLogger(__name__)

FOLDER = "previews"  # in the data folder
MODEL_MAP_FILE = "preview_map.safetensors"  # in a model's folder
FORMAT_VERSION = 1  # raise it when the fit changes, to discard older maps, those in models' folders too
MAX_FILE_BYTES = 4 * 1024 * 1024  # bytes of a file


class MapStore:
    """An unreadable file counts as missing; a map that cannot be written is fitted again at the next start."""

    def __init__(self, data: Path) -> None:
        self._folder = data / FOLDER

    def load_map(self, revision: str, channels: int, reach: int, patch: int) -> LatentMap | None:
        """Return the map of this revision and shape, if there is one."""
        return read_map(self._path_of(revision), channels, reach, patch)

    def save_map(self, revision: str, latent_map: LatentMap) -> None:
        """Store the map atomically."""
        path = self._path_of(revision)
        try:
            write_map(path, latent_map)
        except OSError as error:
            log.warning("a preview map cannot be stored in %s, the next start fits it again: %s", path, error)

    def _path_of(self, revision: str) -> Path:
        return self._folder / f"{hashlib.sha256(revision.encode()).hexdigest()[:16]}.safetensors"


def read_map(path: Path, channels: int, reach: int, patch: int) -> LatentMap | None:
    """Return a file's map of this shape; None where there is none, or none that can be used."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        with cast(Any, safe_open)(path, framework="numpy") as file:
            weights: FloatArray = file.get_tensor("weights")
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("the preview map in %s cannot be read, fitting anew: %s", path.name, error)
        return None
    shape = (channels * reach**2 + 1, 3 * patch**2)
    if metadata.get("form") != _format_key(reach, patch) or weights.shape != shape or not np.isfinite(weights).all():
        return None
    return LatentMap(weights.astype(np.float32), reach, patch)


def write_map(path: Path, latent_map: LatentMap) -> None:
    """Write a map atomically. Raises OSError."""
    metadata = {"form": _format_key(latent_map.reach, latent_map.patch)}
    write_atomically(path, save({"weights": latent_map.weights}, metadata))


def _format_key(reach: int, patch: int) -> str:
    return f"{FORMAT_VERSION} {reach} {patch}"
