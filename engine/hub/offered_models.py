"""Which models a worker offers where nobody names any: the default one first, then the embedded and all added ones."""

from __future__ import annotations

from pathlib import Path

from engine.hub.added_models import MODELS_FOLDER, list_added
from engine.hub.part_kinds import WEIGHT_SUFFIXES
from engine.process.model_settings import EMBEDDED_MODEL, read_model_settings

ADDED_MODELS = "added"  # in place of a model's name: all of these
MAX_OFFERED = 64  # models that a worker may announce


def list_offered(data: Path) -> list[str]:
    """Return their names. Raises `ModelSettingsError` where the settings of the models cannot be read."""
    default = read_model_settings(data).default
    chosen = [default] if default and _is_here(data, default) else []
    return list(dict.fromkeys([*chosen, EMBEDDED_MODEL, *list_added(data)]))[:MAX_OFFERED]


def expand_names(names: tuple[str, ...], data: Path) -> list[str]:
    """Return the names, with `added` replaced by what it stands for. Raises `ModelSettingsError`."""
    expanded = [each for name in names for each in (list_offered(data) if name == ADDED_MODELS else [name])]
    return list(dict.fromkeys(expanded))


def _is_here(data: Path, name: str) -> bool:
    path = data / MODELS_FOLDER / name
    is_file = any(path.with_name(f"{name}{suffix}").is_file() for suffix in WEIGHT_SUFFIXES)
    return name == EMBEDDED_MODEL or path.is_dir() or is_file
