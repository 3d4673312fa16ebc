"""IP-Adapters of a folder: `NAME/` with one safetensors file and the folder `image_encoder`, as they are published.

Only safetensors are accepted: a pickle can run code when it is opened. No name and no link leads out of the folder.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from transformers import CLIPVisionModelWithProjection

from engine.contract.rejection import JobRejected
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import list_parts

log = logging.getLogger(__name__)

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
ENCODER_FOLDER = "image_encoder"
MAX_CONFIG_BYTES = 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`


@dataclass(frozen=True)
class AdapterFile:
    """One adapter. `revision` changes with its weights and with its image encoder's."""

    name: str
    path: Path
    encoder_folder: Path
    revision: str
    encoder_revision: str


def find_adapters(folder: Path | None) -> list[AdapterFile]:
    """Return every usable adapter by name; log the others."""
    adapters: list[AdapterFile] = []
    for name in [] if folder is None else _list_names(folder):
        try:
            adapters.append(find_adapter(folder, name))
        except JobRejected as rejection:
            log.warning("left out: %s", rejection.sentence)
    return adapters


def find_adapter(folder: Path | None, name: str) -> AdapterFile:
    """Return the adapter of this name. Raises `JobRejected`."""
    if folder is None or not _NAME.fullmatch(name) or not (folder / name).is_dir():
        raise JobRejected(f"This worker has no reference adapter called {name[:64]}.", "worker")
    try:
        return _open_adapter(folder, name)
    except OSError as error:
        log.warning("the reference adapter %s: %s", name, error)
        raise JobRejected(f"The reference adapter {name} cannot be read.", "worker") from error


def read_shapes(adapter: AdapterFile) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, from the file's header. Raises `JobRejected`."""
    try:
        with cast(Any, safe_open)(adapter.path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The reference adapter {adapter.name} cannot be read as safetensors.", "worker") from error


def count_values(adapter: AdapterFile) -> int:
    """Return the number of values of adapter and image encoder. Raises `JobRejected`."""
    (encoder,) = list_parts(adapter.encoder_folder.parent, {ENCODER_FOLDER: CLIPVisionModelWithProjection})
    return encoder.parameters + sum(math.prod(shape) for shape in read_shapes(adapter).values())


def read_encoder_config(adapter: AdapterFile) -> dict[str, Any]:
    """Return the configuration of the image encoder. Raises `JobRejected`."""
    try:
        with (adapter.encoder_folder / "config.json").open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))  # a longer one is cut off, and so refused
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise JobRejected(f"The image encoder of the reference adapter {adapter.name} cannot be read.", "worker")
    return cast(dict[str, Any], config)


def _list_names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("the folder of reference adapters cannot be read: %s", error)
        return []


def _open_adapter(folder: Path, name: str) -> AdapterFile:
    path, encoder_folder = _find_weights(folder / name), folder / name / ENCODER_FOLDER
    encoder_files = sorted([*encoder_folder.glob("config.json"), *encoder_folder.glob(f"*{SAFETENSORS_SUFFIX}")])
    if not any(each.suffix == SAFETENSORS_SUFFIX for each in encoder_files):
        reason = f"needs its image encoder beside it, as the folder {ENCODER_FOLDER} with weights in safetensors"
        raise JobRejected(f"The reference adapter {name} {reason}.", "worker")
    if any(each.stat().st_size > MAX_CONFIG_BYTES for each in encoder_folder.glob("*.json")):  # libraries read it whole
        reason = f"has an image encoder with a configuration of more than {MAX_CONFIG_BYTES // 2**20} MiB"
        raise JobRejected(f"The reference adapter {name} {reason}.", "worker")
    if not all(each.resolve().is_relative_to(folder.resolve()) for each in (path, *encoder_files)):
        raise JobRejected(f"The reference adapter {name} has a link that leads out of the folder it is in.", "worker")
    encoder_revision = combine_fingerprints(*(_fingerprint(each) for each in encoder_files))
    revision = combine_fingerprints(_fingerprint(path), encoder_revision)
    return AdapterFile(name, path, encoder_folder, revision, encoder_revision)


def _find_weights(folder: Path) -> Path:
    """Return the only file of weights. Raises `JobRejected` for a pickle, several files or none."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == SAFETENSORS_SUFFIX]
    if len(weights) == 1:
        return weights[0]
    if weights:
        reason = "has several files of weights: give each adapter a folder of its own"
    elif any(path.suffix in PICKLE_SUFFIXES for path in files):
        reason = "exists only as a pickle, which can run code when it is opened: convert it to safetensors"
    else:
        reason = "has no file of weights"
    raise JobRejected(f"The reference adapter {folder.name} {reason}.", "worker")


def _fingerprint(path: Path) -> str:
    stat = path.stat()
    return _fingerprint_once(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _fingerprint_once(path: Path, size: int, mtime_ns: int) -> str:
    return f"{path.name} {fingerprint_file(path)}"
