"""`darkroom models remove`: asks, and deletes a model with its settings."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from bot.cli.models.verification import make_unknown_error
from bot.domain.errors import UserError
from engine.hub.added_models import find_folder, list_added, list_partial, remove_model
from engine.process.load_progress import format_size
from engine.process.model_settings import read_model_settings, write_model_settings


def remove_added(data: Path, name: str, *, confirmed: bool) -> str:
    """Delete a model; return the sentence about it. Raise `UserError` or `HubError`."""
    added, partial = list_added(data), list_partial(data)
    if name not in added and name not in partial and not find_folder(data, name).exists():
        raise make_unknown_error(name, [*added, *partial])
    if not confirmed:
        _ask(name, added[name].size if name in added else 0)
    settings_file = read_model_settings(data)
    freed = remove_model(data, name)
    if name in settings_file.models or settings_file.default == name:
        write_model_settings(data, settings_file.without_model(name))
    return f"{name} is deleted, which frees {format_size(freed)}. A running Darkroom needs a restart to forget it."


def _ask(name: str, size: int) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"`darkroom models remove {name} --yes` deletes it.")
    size_text = f", {format_size(size)}" if size else ""
    if not typer.confirm(f"Delete {name}{size_text}?", default=False, err=True):
        raise UserError("Nothing was deleted.")
