"""Reads the word lists of the embedded model: nouns that it never learned, and the styles that suit its labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from engine.contract.fields import MAX_STYLES, Style
from engine.contract.rejection import JobRejected
from engine.prompt.style_guide import StyleGuide

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
SUBSTITUTES_FILE = Path("substitutes") / "nouns.json"
STYLES_FILE = Path("styles") / "labels.json"
FileKind = TypeVar("FileKind", bound=Struct)


class SubstitutesFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file of `darkroom train substitutes`. `source`: where the meanings come from, with licence."""

    source: str
    nouns: Mapping[str, str]


class StylesFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file of `darkroom train styles`: the main style, and for each other one the labels that come out well."""

    main_style: Style
    labels_by_style: Annotated[Mapping[Style, list[str]], Meta(max_length=MAX_STYLES // 2)]  # each takes turns with it


def read_substitutes(weights: Path) -> Mapping[str, str]:
    """Read the nouns that the network never learned, each with the label in its place. Raises `JobRejected`."""
    file = _read_list(weights / SUBSTITUTES_FILE, SubstitutesFile)
    return file.nouns if file is not None else {}


def read_style_guide(weights: Path = WEIGHTS_FOLDER) -> StyleGuide | None:
    """Read which styles suit which labels; None for a model without such a list. Raises `JobRejected`."""
    file = _read_list(weights / STYLES_FILE, StylesFile)
    if file is None:
        return None
    labels_by_style = {style: frozenset(labels) for style, labels in file.labels_by_style.items()}
    return StyleGuide(file.main_style, labels_by_style, read_substitutes(weights))


def _read_list(path: Path, kind: type[FileKind]) -> FileKind | None:
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise JobRejected(f"The model's {path.parent.name}/{path.name} cannot be read: {error}.", "model") from error
