"""What `darkroom models list` and `search` show, gathered from the data folder, the hub and the running Darkroom."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bot.cli.models.upkeep import describe_settings
from bot.domain.texts import clean_text
from engine.hub.added_models import MODELS_FOLDER, is_name, list_added, list_partial, list_places
from engine.hub.catalogue import TITLES, CatalogueEntry, PartEntry
from engine.hub.repository import HubError, search_hub
from engine.process.load_progress import format_size
from engine.process.model_settings import EMBEDDED_MODEL, read_model_settings

ENTRY_FIELDS = ("name", "hub_id", "revision", "title", "licence", "restrictions", "asks", "download_bytes")
MEMORY_KINDS = ("none", "int8", "int4", "nf4", "float8")


@dataclass(frozen=True)
class ModelRow:
    """A model on this machine. `state`: what the running Darkroom does with it; empty where none runs."""

    name: str
    size: int  # bytes on the disk; 0: unknown
    licence: str
    defaults: str
    state: str
    is_default: bool
    hub_id: str = ""
    revision: str = ""
    quantize: str = ""
    kind: str = "model"


def list_rows(data: Path) -> list[ModelRow]:
    """Return the embedded model, added models, other folders and files, added parts, and interrupted downloads."""
    settings_file = read_model_settings(data)
    added = list_added(data)
    states = _fetch_states(data)
    places = list_places(data)
    sizes = Counter[str]()  # of network and rest, where these are apart
    for place, manifest in places.values():
        sizes[place.name] += manifest.size if place.kind == "model" else 0
    rows = list[ModelRow]()
    for name in dict.fromkeys((EMBEDDED_MODEL, *added, *_list_other_names(data))):
        manifest = added.get(name)
        settings = settings_file.get(name)
        rows.append(
            ModelRow(
                name,
                sizes[name],
                manifest.licence if manifest else "Apache 2.0" if name == EMBEDDED_MODEL else "",
                describe_settings(settings),
                states.get(name, "not offered" if states else ""),
                name == (settings_file.default or EMBEDDED_MODEL),
                manifest.hub_id if manifest else "",
                manifest.revision if manifest else "",
                settings.quantize or "",
            )
        )
    parts = {key: row for key, row in places.items() if row[0].kind != "model"}
    for key, (place, part) in parts.items():
        rows.append(ModelRow(key, part.size, part.licence, "", "", False, part.hub_id, part.revision, kind=place.kind))
    unfinished = [key for key in list_partial(data) if key not in places]
    return [*rows, *(ModelRow(key, 0, "", "", "download interrupted: add it again", False) for key in unfinished)]


def entry_to_dict(entry: CatalogueEntry | PartEntry) -> dict[str, Any]:
    """Return an entry of the catalogue as JSON has it; sizes in bytes are estimates."""
    kind_names = ("kind", "path", "fits") if isinstance(entry, PartEntry) else ("sampler", "steps", "guidance", "size")
    values = {name: getattr(entry, name) for name in (*ENTRY_FIELDS, *kind_names)}
    if isinstance(entry, CatalogueEntry):
        values["memory_bytes"] = {kind: entry.estimate_memory(kind) for kind in MEMORY_KINDS}
    return values


def search_hub_names(word: str, entries: Sequence[CatalogueEntry]) -> tuple[list[str], str]:
    """Return names on the hub that are not among the entries, and a sentence if it cannot be asked."""
    try:
        hub_ids = search_hub(word)
    except HubError as error:
        return [], error.sentence
    known_ids = {entry.hub_id for entry in entries}
    return [hub_id for hub_id in hub_ids if hub_id not in known_ids], ""


def _list_other_names(data: Path) -> list[str]:
    """Return the folders and files that the operator put there."""
    try:
        paths = sorted((data / MODELS_FOLDER).iterdir())
    except OSError:
        return []
    names = [
        path.name.removesuffix(".safetensors")
        for path in paths
        if (path / "model_index.json").is_file() or (path.suffix == ".safetensors" and path.is_file())
    ]
    return [name for name in names if is_name(name)]


def _fetch_states(data: Path) -> dict[str, str]:
    """Return what the running Darkroom says of each model; empty where none runs or answers."""
    from bot.cli.imagine.http_client import ask_running

    answer = asyncio.run(ask_running(data, "/api/workers")) or {}
    loaded = set(answer.get("loaded", ()))
    return {str(name): "in memory" if name in loaded else "offered" for name in answer.get("models", ())}


DEFAULT_WIDTH = 110
GAP = 2


def print_models(rows: Sequence[ModelRow]) -> None:
    """Print one line for each model on this machine; the default one has a star."""
    has_state = any(row.state for row in rows)
    table = _make_table("", "model", "size", "licence", "defaults", *(["now"] if has_state else []))
    for row in rows:
        size = format_size(row.size) if row.size else "–"
        cells = ["*" if row.is_default else "", row.name, size, row.licence or "–", row.defaults]
        table.add_row(*(Text(clean_text(cell)) for cell in [*cells, *([row.state] if has_state else [])]))
    _print(table)


def print_search(
    entries: Sequence[CatalogueEntry], parts: Sequence[PartEntry], hub_ids: Sequence[str], note: str
) -> None:
    """Print matches of the catalogue with what they need, well-known parts, then names on the hub."""
    if entries:
        table = _make_table("model", "download ≈", "memory ≈", "int8 ≈", "int4 ≈", "licence")
        for entry in entries:
            sizes = [entry.download_bytes, *(entry.estimate_memory(kind) for kind in ("none", "int8", "int4"))]
            cells = [entry.name, *(format_size(size) for size in sizes), entry.licence]
            table.add_row(*(Text(cell) for cell in cells))
        _print(table)
    if parts:
        table = _make_table("part", "kind", "download ≈", "fits", "licence")
        for part in parts:
            cells = [part.name, TITLES[part.kind], format_size(part.download_bytes), part.fits, part.licence]
            table.add_row(*(Text(cell) for cell in cells))
        _print(table)
    for hub_id in hub_ids:
        _print(Text(f"on the hub: {clean_text(hub_id)}"))
    if note:
        _print(Text(note))
    elif not entries and not parts and not hub_ids:
        _print(Text("Neither the catalogue nor the hub has such a model."))


def _make_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in columns:
        is_number = column == "size" or column.endswith("≈")
        table.add_column(column, no_wrap=True, justify="right" if is_number else "left")
    return table


def _print(content: Table | Text) -> None:
    console = Console(width=None if sys.stdout.isatty() else DEFAULT_WIDTH)
    console.print(content, crop=False, soft_wrap=True, highlight=False)
