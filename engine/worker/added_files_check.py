"""The part of `darkroom doctor` about files that an operator added for models: which of them fit none, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.contract import ModelProfile
from engine.contract.rejection import JobRejected
from engine.model_cache.catalog_file import read_catalog
from engine.models.autoencoder.autoencoder_files import find_autoencoder
from engine.models.control.compatibility import explain_mismatch
from engine.models.control.control_conditioner import ControlConditioner
from engine.models.control.control_files import ControlFile, find_control
from engine.models.families.added_files import AddedFiles
from engine.models.family import Family
from engine.models.files.data_folders import AUTOENCODER_FOLDER, CONTROL_FOLDER, EMBEDDING_FOLDER, REFERENCE_FOLDER
from engine.models.reference.adapter_files import AdapterFile, find_adapter
from engine.models.reference.reference_conditioner import ReferenceConditioner
from engine.models.textual_inversion.embedding_files import find_embedding

MAX_FILES = 256  # of a kind
REMEDY = "Take it away, or offer a model that it fits and start it once."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")

Finding = tuple[str, bool, str, str]  # name, whether it is fine, the finding, the fix


class AddedKind(NamedTuple):
    """A kind of added files: its folder, how one is found, what a model announces, why one does not fit a model."""

    title: str
    noun: str
    folder: str
    find: Callable[[Path, str], Any]
    announced: str  # the field of `ModelProfile`
    explain: Callable[[AddedFiles, Any], str]


def _explain_control(family: AddedFiles, file: ControlFile) -> str:
    conditioners = [each for each in family.conditioners if isinstance(each, ControlConditioner)]
    if not conditioners:
        return "it takes no control networks"
    return explain_mismatch(file, conditioners[0].collection.target)


def _explain_reference(family: AddedFiles, file: AdapterFile) -> str:
    conditioners = [each for each in family.conditioners if isinstance(each, ReferenceConditioner)]
    return (conditioners[0].find_mismatch(file) or "") if conditioners else "it takes no reference pictures"


KINDS = (
    AddedKind(
        "embedding", "textual inversion", EMBEDDING_FOLDER, find_embedding, "embeddings",
        AddedFiles.explain_embedding,
    ),
    AddedKind("control", "control network", CONTROL_FOLDER, find_control, "controls", _explain_control),
    AddedKind("reference", "reference adapter", REFERENCE_FOLDER, find_adapter, "references", _explain_reference),
    AddedKind(
        "vae", "autoencoder", AUTOENCODER_FOLDER, find_autoencoder, "autoencoders",
        AddedFiles.explain_autoencoder,
    ),
)  # fmt: skip


def check_added_files(data: Path, family: Family, profile: ModelProfile) -> Iterator[Finding]:
    """Yield a line for each file that cannot be read, or fits neither the loaded model nor one that was offered here.

    `profile` is the loaded model's. A last line a kind counts those that fit.
    """
    profiles = [profile, *(entry.model_profile for entry in read_catalog(data).values())]
    for kind in KINDS:
        fitting_names = list[str]()
        for name in _list_names(data / kind.folder):
            if finding := _check_file(kind, data / kind.folder, name, family, profiles):
                yield finding
            else:
                fitting_names.append(name)
        if fitting_names:
            yield kind.title, True, f"{len(fitting_names)} fit: {', '.join(fitting_names)[:200]}", ""


def _check_file(
    kind: AddedKind, folder: Path, name: str, family: Family, profiles: Sequence[ModelProfile]
) -> Finding | None:
    """Return what is wrong with a file; None: it fits a model."""
    try:
        file = kind.find(folder, name)
    except JobRejected as rejection:
        return kind.title, False, rejection.sentence.rstrip("."), "Replace it, or take it away."
    offered: list[Any] = [part for profile in profiles for part in getattr(profile, kind.announced)]
    if any((part.name, part.revision) == (file.name, file.revision) for part in offered):
        return None
    models = ", ".join(dict.fromkeys(each.name for each in profiles))[:200]
    reason = kind.explain(family, file) if isinstance(family, AddedFiles) else ""
    return (
        kind.title,
        False,
        f"the {kind.noun} {name} fits none of {models}" + (f": {reason}" if reason else ""),
        REMEDY,
    )


def _list_names(folder: Path) -> list[str]:
    try:
        paths = [path for path in folder.iterdir() if path.is_dir() or path.suffix in _SUFFIXES]
    except OSError:
        return []
    names = {path.name if path.is_dir() else path.stem for path in paths}
    return sorted(name for name in names if _NAME.fullmatch(name))[:MAX_FILES]
