"""Tables of `darkroom models` in the terminal. Text of the hub is printed on one line, without control characters."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bot.cli.models.listing import ModelRow
from bot.domain.texts import clean_text
from engine.hub.catalogue import TITLES, CatalogueEntry, PartEntry
from engine.process.load_progress import format_size

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
