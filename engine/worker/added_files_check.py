"""The part of `darkroom doctor` about files that an operator added for models: which of them fit none, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.contract import ModelProfile
from engine.contract.rejection import JobRejected
from engine.model_cache.catalog_file import read_catalog
from engine.models.autoencoder.autoencoder_files import AUTOENCODER_KIND
from engine.models.control.control_conditioner import ControlConditioner
from engine.models.control.control_files import CONTROL_KIND, ControlFile, explain_mismatch
from engine.models.families.diffusers_family import AddedFiles
from engine.models.family import Family
from engine.models.files.added_kind import (
    AUTOENCODER_FOLDER,
    CONTROL_FOLDER,
    EMBEDDING_FOLDER,
    REFERENCE_FOLDER,
    AddedKind,
)
from engine.models.reference.adapter_files import REFERENCE_KIND, AdapterFile
from engine.models.reference.reference_conditioner import ReferenceConditioner
from engine.models.textual_inversion.embedding_files import EMBEDDING_KIND

MAX_FILES = 256  # of a kind
REMEDY = "Take it away, or offer a model that it fits and start it once."

Finding = tuple[str, bool, str, str]  # name, whether it is fine, the finding, the fix


class AddedCheck(NamedTuple):
    """A kind of added files: its folder, what a model announces, why one does not fit a model."""

    title: str
    kind: AddedKind[Any]
    folder: str
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


CHECKS = (
    AddedCheck("embedding", EMBEDDING_KIND, EMBEDDING_FOLDER, "embeddings", AddedFiles.explain_embedding),
    AddedCheck("control", CONTROL_KIND, CONTROL_FOLDER, "controls", _explain_control),
    AddedCheck("reference", REFERENCE_KIND, REFERENCE_FOLDER, "references", _explain_reference),
    AddedCheck("vae", AUTOENCODER_KIND, AUTOENCODER_FOLDER, "autoencoders", AddedFiles.explain_autoencoder),
)


def check_added_files(data: Path, family: Family, profile: ModelProfile) -> Iterator[Finding]:
    """Yield a line for each file that cannot be read, or fits neither the loaded model nor one that was offered here.

    `profile` is the loaded model's. A last line a kind counts those that fit.
    """
    profiles = [profile, *(entry.model_profile for entry in read_catalog(data).values())]
    for check in CHECKS:
        fitting_names = list[str]()
        for name in check.kind.list_names(data / check.folder)[:MAX_FILES]:
            if finding := _check_file(check, data / check.folder, name, family, profiles):
                yield finding
            else:
                fitting_names.append(name)
        if fitting_names:
            yield check.title, True, f"{len(fitting_names)} fit: {', '.join(fitting_names)[:200]}", ""


def _check_file(
    check: AddedCheck, folder: Path, name: str, family: Family, profiles: Sequence[ModelProfile]
) -> Finding | None:
    """Return what is wrong with a file; None: it fits a model."""
    try:
        file = check.kind.find(folder, name)
    except JobRejected as rejection:
        return check.title, False, rejection.sentence.rstrip("."), "Replace it, or take it away."
    offered: list[Any] = [part for profile in profiles for part in getattr(profile, check.announced)]
    if any((part.name, part.revision) == (file.name, file.revision) for part in offered):
        return None
    models = ", ".join(dict.fromkeys(each.name for each in profiles))[:200]
    reason = check.explain(family, file) if isinstance(family, AddedFiles) else ""
    return (
        check.title,
        False,
        f"the {check.kind.noun} {name} fits none of {models}" + (f": {reason}" if reason else ""),
        REMEDY,
    )
