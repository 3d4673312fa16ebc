"""`darkroom models verify`: compares every byte of added models with the hub's checksums."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from bot.cli.models.transfer_display import TransferDisplay
from bot.domain.errors import UserError
from engine.hub.added_models import Manifest, find_damaged, find_folder, list_added
from engine.hub.catalogue import suggest_names


def verify_models(data: Path, names: list[str], *, quiet: bool) -> dict[str, list[str]]:
    """Return the damaged files of each model, and print a line on each. Raise `UserError` for an unknown name."""
    added, console = list_added(data), Console(file=sys.stderr)
    for name in names:
        if name not in added:
            raise make_unknown_error(name, list(added))
    chosen = {name: added[name] for name in (names or added)}
    if not chosen and not quiet:
        console.print("No model was added yet: darkroom models search.")
    return {name: _verify(data, name, manifest, console, quiet) for name, manifest in chosen.items()}


def make_unknown_error(name: str, known_names: list[str]) -> UserError:
    """Return the error for a model that was not added, with likely names."""
    likely = suggest_names(name, known_names)
    question = f" Did you mean {' or '.join(likely)}?" if likely else " `darkroom models list` shows all."
    return UserError(f"No model called {name[:80]} was added here.{question}")


def _verify(data: Path, name: str, manifest: Manifest, console: Console, quiet: bool) -> list[str]:
    with TransferDisplay(console, name, manifest.size, quiet=quiet) as display:
        damaged = [file.path for file in find_damaged(find_folder(data, name), manifest, display.advance)]
    if not quiet:
        console.print(_describe(name, manifest, damaged), markup=False, highlight=False, soft_wrap=True)
    return damaged


def _describe(name: str, manifest: Manifest, damaged: list[str]) -> str:
    if not damaged:
        return f"{name}: all {len(manifest.files)} files are as the hub has them."
    mend = f"`darkroom models remove {name}`, then `darkroom models add`"
    return f"{name}: {len(damaged)} of {len(manifest.files)} files are damaged ({', '.join(damaged[:3])}): {mend}."
