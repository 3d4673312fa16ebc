"""Locates a model's files by its name on the command line. Loads no weights.

A name means a diffusers folder, an entry in `<data>/models`, a safetensors file in the layout of the original programs,
a GGUF file of a network, or a model on the hub, which is fetched. Its first revision is remembered in
`<data>/hub-revisions.json`, so that its owner cannot change what a worker runs; `name@revision` chooses another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from engine.contract import JobRejected
from engine.hub.added_models import list_places
from engine.hub.catalogue import GGUF_SUFFIX, PICKLE_SUFFIXES, SAFETENSORS_SUFFIX, WEIGHT_SUFFIXES, find_entry
from engine.hub.revisions import read_revisions, remember_revision

_HUB_NAME = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?)(?:@([A-Za-z0-9][A-Za-z0-9._-]*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATHLIKE = re.compile(r"^[~./\\]|\\|/.*/|^[A-Za-z]:|/$")  # no hub name looks like this


@dataclass(frozen=True)
class ModelSource:
    """`path` is a folder, or one file of weights."""

    name: str
    path: Path

    @property
    def is_file(self) -> bool:
        return self.path.is_file()

    def compute_fingerprint(self) -> str:
        """Return twelve hex digits that change with weights and configurations. Reads up to 128 MiB a file."""
        if not self.is_file:
            return fingerprint_folder(self.path)
        configs = find_configs_folder(self.path)
        return combine_fingerprints(fingerprint_file(self.path), fingerprint_folder(configs) if configs else "")


def find_model(name_or_path: str, data: Path) -> ModelSource:
    """Locate a model. Raises `JobRejected` with one sentence where there is none of that name, or only a pickle."""
    models_folder = data / "models"
    candidates = (
        (
            *(models_folder / f"{name_or_path}{suffix}" for suffix in WEIGHT_SUFFIXES),
            models_folder / name_or_path,
            Path(name_or_path),
        )
        if name_or_path
        else ()
    )
    for path in candidates:
        if _exists(path):
            _refuse_other_files(path)
            return ModelSource(make_model_name(name_or_path), path)
    if Path(name_or_path).suffix.lower() in (*WEIGHT_SUFFIXES, *PICKLE_SUFFIXES) or _PATHLIKE.search(name_or_path):
        raise JobRejected(f"There is no model at {name_or_path[:200]}: neither a folder nor a file.", "model")
    hub_match = _HUB_NAME.fullmatch(name_or_path)
    if hub_match is None:
        raise JobRejected(
            f"{name_or_path[:100]!r} is no name of a model: a folder, a file, or a name on the hub.", "model"
        )
    hub_name, revision = hub_match.groups()
    if folder := _find_added(hub_name, revision, data):
        return ModelSource(make_model_name(hub_name), folder)  # the name it had before it was added: recipes have it
    if "/" not in hub_name and find_entry(hub_name) is not None:
        raise JobRejected(f"{hub_name} is not here yet: `darkroom models add {hub_name}`.", "model")
    return ModelSource(make_model_name(hub_name), _download_remembered(hub_name, revision, data))


def make_model_name(name_or_path: str) -> str:
    """Return a name that `Name` allows: the last part of a path or hub name, without a suffix."""
    base_name = name_or_path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    base_name = base_name.removesuffix(SAFETENSORS_SUFFIX).removesuffix(GGUF_SUFFIX)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", base_name).lstrip("._-")[:64]
    if not name:
        raise JobRejected(f"A model needs a name of letters and digits; {name_or_path!r} has none.", "worker")
    return name


def find_configs_folder(path: Path) -> Path | None:
    """Return a file's folder of configurations: beside it, with its name without suffix; None where there is none."""
    folder = path.with_suffix("")
    return folder if folder.is_dir() else None


def _exists(path: Path) -> bool:
    try:
        return path.is_dir() or path.is_file()
    except (OSError, ValueError):  # an impossible file name: too long, or with a zero byte
        return False


def _refuse_other_files(path: Path) -> None:
    if path.is_dir() or path.suffix.lower() in WEIGHT_SUFFIXES:
        return
    if path.suffix.lower() in PICKLE_SUFFIXES:
        reason = "is a pickle, which can run code when it is opened: convert it to safetensors"
        raise JobRejected(f"The model {path.name} {reason}.", "model")
    raise JobRejected(f"The model {path.name} is neither a folder nor a file of safetensors or GGUF.", "model")


def _find_added(hub_name: str, revision: str | None, data: Path) -> Path | None:
    """Return the folder that `darkroom models add` made of this model of the hub, at this revision if one is named."""
    for place, manifest in list_places(data, ("model",)).values() if data != Path() else ():
        is_whole = not place.suffix and not _has_file_beside(place.path)
        if is_whole and manifest.hub_id == hub_name and revision in (None, manifest.revision):
            return place.path
    return None


def _has_file_beside(folder: Path) -> bool:
    """Whether a file of that name has the network's weights: the folder then lacks them."""
    return any(folder.with_name(f"{folder.name}{suffix}").is_file() for suffix in WEIGHT_SUFFIXES)


def _download_remembered(hub_name: str, revision: str | None, data: Path) -> Path:
    """Fetch a revision: the chosen one, or else the one that was fetched first. Remember it where there is a folder."""
    chosen = revision or read_revisions(data).get(hub_name)
    folder = _download(hub_name, chosen) if chosen else _download(hub_name)
    if data != Path() and _COMMIT.fullmatch(folder.name):
        remember_revision(data, hub_name, folder.name)
    return folder


def _download(hub_name: str, revision: str | None = None) -> Path:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        download = cast(Any, DiffusionPipeline).download
        return Path(download(hub_name, use_safetensors=True, safety_checker=None, revision=revision))
    except (OSError, ValueError) as error:
        sentence = f"There is no model {hub_name}: neither a folder nor one on the hub in safetensors."
        raise JobRejected(sentence, "model") from error


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
