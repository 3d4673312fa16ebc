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
class FetchPlan:
    """What is to be fetched, and its name here. `manifest`: of what is here already; None: it is to be fetched."""

    name: str
    entry: CatalogueEntry | PartEntry | None
    download: Download
    manifest: ModelManifest | None


def ask_to_fetch(plan: FetchPlan, console: Console, *, accepts: bool, quiet: bool) -> str:
    """Say what is fetched, and ask for its licence; return the licence's name. Raises `UserError`."""
    if plan.manifest is not None:
        if not quiet:
            key = plan.download.place.key
            say(console, f"{key} is here already, at this revision; `darkroom models verify` checks its files.")
        return plan.manifest.licence
    licence = describe_licence(plan.download.repository, plan.entry)
    if not quiet:
        say(console, *_describe_start(plan), *licence.lines)
    ask_acceptance(licence, accepted=accepts)
    return licence.name


def fetch(plan: FetchPlan, licence: str, console: Console, *, quiet: bool) -> ModelManifest:
    """Return the manifest of what is here already, or is fetched now. Raises `HubError`."""
    if plan.manifest is not None:
        return plan.manifest
    download = plan.download
    repository = plan.download.repository
    with TransferDisplay(console, download.place.key, download.size, download.present_bytes, quiet=quiet) as display:
        manifest = run_download(download, display, licence)
    remember_revision(download.place.data, repository.hub_id, repository.revision)
    return manifest


def say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _describe_start(plan: FetchPlan) -> list[str]:
    download = plan.download
    repository = plan.download.repository
    title = plan.entry.title if plan.entry else plan.name
    present = f", of which {format_size(download.present_bytes)} are here" if download.present_bytes else ""
    lines = [
        f"{title}: {repository.hub_id} at {repository.revision[:12]}",
        f"{format_size(download.size)} to download{present}, in {format_file_count(len(download.files))}",
    ]
    if isinstance(plan.entry, CatalogueEntry):
        kinds = ("none", "int8", "int4")
        sizes = [format_size(plan.entry.estimate_memory(kind)) for kind in kinds]
        lines.append(f"memory, estimated: {sizes[0]}; --quantize int8 {sizes[1]}, int4 {sizes[2]}")
    return lines
