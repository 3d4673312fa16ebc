"""`darkroom models verify`: compares every byte of added models with the hub's checksums."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from bot.cli.models.transfer_display import TransferDisplay
from bot.domain.errors import UserError
from engine.hub.added_models import ModelManifest, find_damaged, find_folder, list_added
from engine.hub.catalogue import suggest_names
from engine.hub.download import plan_repair, run_download
from engine.hub.repository import RepositoryFile


def verify_models(data: Path, names: list[str], *, repair: bool = False, quiet: bool = False) -> dict[str, list[str]]:
    """Return the damaged files of each model that were not repaired, and print a line on each.

    Raise `UserError` for an unknown name, `HubError` where a repair fails.
    """
    added, console = list_added(data), Console(file=sys.stderr)
    for name in names:
        if name not in added:
            raise make_unknown_error(name, list(added))
    chosen = {name: added[name] for name in (names or added)}
    if not chosen and not quiet:
        console.print("No model was added yet: darkroom models search.")
    return {name: _verify(data, name, manifest, console, repair, quiet) for name, manifest in chosen.items()}


def make_unknown_error(name: str, known_names: list[str]) -> UserError:
    """Return the error for a model that was not added, with likely names."""
    likely = suggest_names(name, known_names)
    question = f" Did you mean {' or '.join(likely)}?" if likely else " `darkroom models list` shows all."
    return UserError(f"No model called {name[:80]} was added here.{question}")


def _verify(data: Path, name: str, manifest: ModelManifest, console: Console, repair: bool, quiet: bool) -> list[str]:
    with TransferDisplay(console, name, manifest.size, quiet=quiet) as display:
        damaged = find_damaged(find_folder(data, name), manifest, display.advance)
    if not quiet:
        console.print(_describe(name, manifest, damaged, repair), markup=False, highlight=False, soft_wrap=True)
    if damaged and repair:
        download = plan_repair(manifest, damaged, data, name)
        with TransferDisplay(console, name, download.size, download.present_bytes, quiet=quiet) as display:
            run_download(download, data, name, display, manifest.licence)
        return []
    return [file.path for file in damaged]


def _describe(name: str, manifest: ModelManifest, damaged: list[RepositoryFile], repair: bool) -> str:
    if not damaged:
        return f"{name}: all {len(manifest.files)} files are as the hub has them."
    mend = "they are fetched again" if repair else f"`darkroom models verify {name} --repair` fetches them again"
    paths = ", ".join(file.path for file in damaged[:3])
    return f"{name}: {len(damaged)} of {len(manifest.files)} files are damaged ({paths}): {mend}."
