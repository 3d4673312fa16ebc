"""`darkroom models verify`: compares every byte of added models with the hub's checksums."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from bot.cli.models.transfer_display import TransferDisplay, format_file_count
from bot.domain.errors import UserError
from engine.hub.added_models import AddedPlace, ModelManifest, find_damaged, list_places
from engine.hub.catalogue import WEIGHT_SUFFIXES, suggest_names
from engine.hub.download import plan_repair, run_download
from engine.hub.repository import RepositoryFile


def verify_models(data: Path, names: list[str], *, repair: bool = False, quiet: bool = False) -> dict[str, list[str]]:
    """Return the damaged files of each model that were not repaired, and print a line on each.

    Raise `UserError` for an unknown name, `HubError` where a repair fails.
    """
    added = list_places(data)
    console = Console(file=sys.stderr)
    keys = [find_key(name, list(added)) for name in names] or list(added)
    if not keys and not quiet:
        console.print("No model was added yet: darkroom models search.")
    return {key: _verify(*added[key], console, repair, quiet) for key in keys}


def find_key(name: str, keys: list[str]) -> str:
    """Return the key that is meant: the name itself, or the only one that ends in it. Raise `UserError` for another."""
    matches = [name] if name in keys else [key for key in keys if name in list_short_names(key)]
    if len(matches) > 1:
        raise UserError(f"Which one: {' or '.join(matches[:4])}?")
    if not matches:
        raise make_unknown_error(name, keys)
    return matches[0]


def list_short_names(key: str) -> list[str]:
    """Return what `controlnets/canny.safetensors` may be called where that is clear, too."""
    name = key.rpartition("/")[2]
    suffix = next((each for each in WEIGHT_SUFFIXES if name.endswith(each)), "")
    return [name, name.removesuffix(suffix), key.removesuffix(suffix)]


def make_unknown_error(name: str, known_names: list[str]) -> UserError:
    """Return the error for a model that was not added, with likely names."""
    likely = suggest_names(name, known_names)
    question = f" Did you mean {' or '.join(likely)}?" if likely else " `darkroom models list` shows all."
    return UserError(f"No model called {name[:80]} was added here.{question}")


def _verify(place: AddedPlace, manifest: ModelManifest, console: Console, repair: bool, quiet: bool) -> list[str]:
    with TransferDisplay(console, place.key, manifest.size, quiet=quiet) as display:
        damaged = find_damaged(place.base, manifest, display.advance)
    if not quiet:
        console.print(_describe(place.key, manifest, damaged, repair), markup=False, highlight=False, soft_wrap=True)
    if damaged and repair:
        download = plan_repair(manifest, damaged, place)
        with TransferDisplay(console, place.key, download.size, download.present_bytes, quiet=quiet) as display:
            run_download(download, display, manifest.licence)
        return []
    return [file.local_path for file in damaged]


def _describe(name: str, manifest: ModelManifest, damaged: list[RepositoryFile], repair: bool) -> str:
    if not damaged:
        pronoun = "them" if manifest.files[1:] else "it"
        unchecked = sum(not file.has_checksum for file in manifest.files)
        note = f" Of {format_file_count(unchecked)} the hub gave only the size." if unchecked else ""
        return f"{name}: {format_file_count(len(manifest.files))} as the hub has {pronoun}.{note}"
    mend = "they are fetched again" if repair else f"`darkroom models verify {name} --repair` fetches them again"
    paths = ", ".join(file.local_path for file in damaged[:3])
    return f"{name}: {len(damaged)} of {len(manifest.files)} files are damaged ({paths}): {mend}."
