"""`darkroom models remove`: asks, and deletes a model with its settings, or a part."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from bot.cli.models.verification import find_key
from bot.domain.errors import UserError
from engine.hub.added_models import (
    AddedPlace,
    find_partial,
    find_place,
    is_name,
    list_added,
    list_partial,
    list_places,
    remove_place,
)
from engine.process.load_progress import format_size
from engine.process.model_settings import read_model_settings, write_model_settings


def remove_added(data: Path, name: str, *, confirmed: bool) -> str:
    """Delete a model or part; return the sentence about it. Raise `UserError` or `HubError`."""
    found = _find(data, name)
    key = " and ".join(place.key for place, _ in found)
    if not confirmed:
        _ask(name, key, sum(size for _, size in found))
    settings_file = read_model_settings(data)
    freed = sum(remove_place(place) for place, _ in found)
    for name_here in {place.name for place, _ in found if place.kind == "model"} - list_added(data).keys():
        if name_here in settings_file.models or settings_file.default == name_here:
            write_model_settings(data, settings_file.without_model(name_here))
    are = "are" if len(found) > 1 else "is"
    return f"{key} {are} deleted, which frees {format_size(freed)}. A running Darkroom needs a restart to forget it."


def _find(data: Path, name: str) -> list[tuple[AddedPlace, int]]:
    """Return what is meant, added or half downloaded, and its bytes, 0 where they are unknown.

    A model of that name is a network and the rest of its pipeline, where these are apart.
    """
    added = list_places(data)
    partial = list_partial(data)
    models = [(place, manifest.size) for place, manifest in added.values() if place.kind == "model"]
    if both := [each for each in models if each[0].name == name]:
        return both
    if name not in added and name not in partial and is_name(name) and find_place(data, name).path.exists():
        return [(find_place(data, name), 0)]  # the operator's own, which is refused
    key = find_key(name, list(dict.fromkeys([*added, *partial])))
    if key in added:
        place, manifest = added[key]
        return [(place, manifest.size)]
    place = find_partial(data, key)
    assert place is not None, "its key was listed"
    return [(place, 0)]


def _ask(name: str, key: str, size: int) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"`darkroom models remove {name} --yes` deletes it.")
    size_text = f", {format_size(size)}" if size else ""
    if not typer.confirm(f"Delete {key}{size_text}?", default=False, err=True):
        raise UserError("Nothing was deleted.")
