"""Locates a model's files by its name on the command line. Loads no weights.

A name means a diffusers folder, an entry in `<data>/models`, a safetensors file in the layout of the original programs,
or a model on the hub, which is fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engine.contract.rejection import JobRejected
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file, fingerprint_folder

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
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
        (models_folder / f"{name_or_path}{SAFETENSORS_SUFFIX}", models_folder / name_or_path, Path(name_or_path))
        if name_or_path
        else ()
    )
    for path in candidates:
        if _exists(path):
            _refuse_other_files(path)
            return ModelSource(make_model_name(name_or_path), path)
    if Path(name_or_path).suffix.lower() in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES) or _PATHLIKE.search(name_or_path):
        raise JobRejected(f"There is no model at {name_or_path[:200]}: neither a folder nor a file.", "model")
    if not _HUB_NAME.fullmatch(name_or_path):
        raise JobRejected(
            f"{name_or_path[:100]!r} is no name of a model: a folder, a file, or a name on the hub.", "model"
        )
    return ModelSource(make_model_name(name_or_path), _download(name_or_path))


def make_model_name(name_or_path: str) -> str:
    """Return a name that `engine.contract.Name` allows: the last part of a path or hub name, without a suffix."""
    base_name = name_or_path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", base_name.removesuffix(SAFETENSORS_SUFFIX)).lstrip("._-")[:64]
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
    if path.is_dir() or path.suffix.lower() == SAFETENSORS_SUFFIX:
        return
    if path.suffix.lower() in PICKLE_SUFFIXES:
        reason = "is a pickle, which can run code when it is opened: convert it to safetensors"
        raise JobRejected(f"The model {path.name} {reason}.", "model")
    raise JobRejected(f"The model {path.name} is neither a folder nor a file of safetensors.", "model")


def _download(hub_name: str) -> Path:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return Path(cast(Any, DiffusionPipeline).download(hub_name, use_safetensors=True, safety_checker=None))
    except (OSError, ValueError) as error:
        sentence = f"There is no model {hub_name}: neither a folder nor one on the hub in safetensors."
        raise JobRejected(sentence, "model") from error
