"""One thing that `darkroom models add` fetches: what is said and asked before, and the transfer itself."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from bot.cli.models.licence import ask_acceptance, describe_licence
from bot.cli.models.transfer_display import TransferDisplay, format_file_count
from engine.hub.added_models import ModelManifest
from engine.hub.catalogue import CatalogueEntry, PartEntry
from engine.hub.download import Download, run_download
from engine.hub.revisions import remember_revision
from engine.process.load_progress import format_size


@dataclass(frozen=True)
class FetchOrder:
    """What is to be fetched, and its name here. `manifest`: of what is here already; None: it is to be fetched."""

    name: str
    entry: CatalogueEntry | PartEntry | None
    download: Download
    manifest: ModelManifest | None


def ask_to_fetch(order: FetchOrder, console: Console, *, accepts: bool, quiet: bool) -> str:
    """Say what is fetched, and ask for its licence; return the licence's name. Raises `UserError`."""
    if order.manifest is not None:
        if not quiet:
            key = order.download.place.key
            say(console, f"{key} is here already, at this revision; `darkroom models verify` checks its files.")
        return order.manifest.licence
    licence = describe_licence(order.download.repository, order.entry)
    if not quiet:
        say(console, *_describe_start(order), *licence.lines)
    ask_acceptance(licence, accepted=accepts)
    return licence.name


def fetch(order: FetchOrder, licence: str, console: Console, *, quiet: bool) -> ModelManifest:
    """Return the manifest of what is here already, or is fetched now. Raises `HubError`."""
    if order.manifest is not None:
        return order.manifest
    download, repository = order.download, order.download.repository
    with TransferDisplay(console, download.place.key, download.size, download.present_bytes, quiet=quiet) as display:
        manifest = run_download(download, display, licence)
    remember_revision(download.place.data, repository.hub_id, repository.revision)
    return manifest


def say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _describe_start(order: FetchOrder) -> list[str]:
    download, repository = order.download, order.download.repository
    title = order.entry.title if order.entry else order.name
    present = f", of which {format_size(download.present_bytes)} are here" if download.present_bytes else ""
    lines = [
        f"{title}: {repository.hub_id} at {repository.revision[:12]}",
        f"{format_size(download.size)} to download{present}, in {format_file_count(len(download.files))}",
    ]
    if isinstance(order.entry, CatalogueEntry):
        kinds = ("none", "int8", "int4")
        sizes = [format_size(order.entry.estimate_memory(kind)) for kind in kinds]
        lines.append(f"memory, estimated: {sizes[0]}; --quantize int8 {sizes[1]}, int4 {sizes[2]}")
    return lines
