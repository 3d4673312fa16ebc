"""Locates a model's files by its name on the command line. Loads no weights.

A name means a diffusers folder, an entry in `<data>/models`, a safetensors file in the layout of the original programs,
a GGUF file of a network, or a model on the hub, which is fetched. Its first revision is remembered in
`<data>/hub-revisions.json`, so that its owner cannot change what a worker runs; `name@revision` chooses another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engine.contract.rejection import JobRejected
from engine.hub.added_models import list_places
from engine.hub.catalogue import GGUF_SUFFIX, PICKLE_SUFFIXES, SAFETENSORS_SUFFIX, WEIGHT_SUFFIXES, find_entry
from engine.hub.revisions import read_revisions, remember_revision
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file, fingerprint_folder

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
    """Return a name that `engine.contract.Name` allows: the last part of a path or hub name, without a suffix."""
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
