"""`darkroom models add`: from a name to a checked folder of the model with its defaults."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bot.cli.models.licence import ask_acceptance, describe_licence
from bot.cli.models.quantization import parse_quantization
from bot.cli.models.transfer_display import TransferDisplay
from bot.domain.errors import UserError
from engine.hub.added_models import ModelManifest, find_folder, is_name, list_added, read_manifest
from engine.hub.catalogue import CatalogueEntry, find_entry, read_catalogue, suggest_names
from engine.hub.download import Download, check_disk_space, plan_download, read_partial_revision, run_download
from engine.hub.errors import HubError
from engine.hub.offered_models import ADDED_MODELS, EMBEDDED_MODEL
from engine.hub.repository import Repository, fetch_repository
from engine.hub.revisions import read_revisions, remember_revision
from engine.process.load_progress import format_size
from engine.process.model_settings import ModelSettings, read_model_settings, write_model_settings
from engine.process.quantization_request import QuantizationRequest


@dataclass(frozen=True)
class AddRequest:
    """What was typed. `called`: the model's name here; empty: the catalogue's, or the last part of the hub's."""

    name: str
    called: str = ""
    quantize: str = ""
    accept_licence: bool = False
    revision: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class _Target:
    """A model to add: its name here, its name on the hub, and the wanted revision; None: the newest."""

    name: str
    hub_id: str
    revision: str | None
    entry: CatalogueEntry | None


def add_model(request: AddRequest, data: Path) -> dict[str, Any]:
    """Add a model; return what `--json` prints. Raise `UserError`, `HubError` or `JobRejected` with one sentence."""
    console = Console(file=sys.stderr)
    quantization, target = parse_quantization(request.quantize), _find_target(request, data)
    read_model_settings(data)  # a file that cannot be read is refused before gigabytes are fetched
    repository = _fetch_known_repository(target)
    if (manifest := _find_present(target, repository, data)) is None:
        manifest = _download(target, repository, request, data, console)
        remember_revision(data, repository.hub_id, repository.revision)
    elif not request.quiet:
        _say(console, f"{target.name} is here already, at this revision; `darkroom models verify` checks its files.")
    settings = _store_settings(target, quantization, data)
    if not request.quiet:
        _say(console, _describe_end(target.name, manifest, settings))
    return {
        "name": target.name, "hub_id": manifest.hub_id, "revision": manifest.revision, "bytes": manifest.size,
        "files": len(manifest.files), "licence": manifest.licence, "folder": str(find_folder(data, target.name)),
        "steps": settings.steps, "sampler": settings.sampler, "guidance": settings.guidance,
        "quantize": settings.quantize,
    }  # fmt: skip


def _find_target(request: AddRequest, data: Path) -> _Target:
    """Return what to fetch. A chosen revision wins over that of an interrupted download, of the catalogue, and a
    remembered one.
    """
    entry = find_entry(request.name)
    hub_id = entry.hub_id if entry else request.name
    name = request.called or (entry.name if entry else hub_id.rpartition("/")[2])
    if not is_name(name):
        raise UserError(f"{name[:80]!r} is no name for a model: choose letters, digits, dots and dashes with --name.")
    if name in (EMBEDDED_MODEL, ADDED_MODELS):
        raise UserError(f"--model {name} has a meaning of its own: choose another name with --name.")
    _refuse_other_models(name, data)
    partial_revision = read_partial_revision(data, name, hub_id)
    pinned = entry.revision if entry else ""
    revision = request.revision or partial_revision or pinned or read_revisions(data).get(hub_id)
    return _Target(name, hub_id, revision or None, entry)


def _refuse_other_models(name: str, data: Path) -> None:
    folder = find_folder(data, name)
    weights = folder.with_name(f"{name}.safetensors")
    if weights.is_file() or (folder.exists() and read_manifest(folder) is None):
        raise UserError(f"{folder.parent} has another model called {name}: choose a name with --name.")


def _fetch_known_repository(target: _Target) -> Repository:
    """Ask the hub. For a name that it does not have, say which ones are like it."""
    try:
        return fetch_repository(target.hub_id, target.revision)
    except HubError as error:
        likely = suggest_names(target.hub_id, [entry.name for entry in read_catalogue()])
        if target.entry is None and likely and error.sentence.startswith("The hub has no model"):
            raise HubError(f"{error.sentence} Did you mean {' or '.join(likely)}?") from error
        raise


def _find_present(target: _Target, repository: Repository, data: Path) -> ModelManifest | None:
    """Return the manifest if the model is here at that revision already."""
    manifest = list_added(data).get(target.name)
    if manifest is not None and manifest.hub_id != repository.hub_id:
        raise UserError(f"{target.name} is {manifest.hub_id} here: choose another name with --name.")
    return manifest if manifest is not None and manifest.revision == repository.revision else None


def _download(
    target: _Target, repository: Repository, request: AddRequest, data: Path, console: Console
) -> ModelManifest:  # fmt: skip
    download, licence = plan_download(repository, data, target.name), describe_licence(repository, target.entry)
    check_disk_space(download)
    if not request.quiet:
        _say(console, *_describe_start(target, download), *licence.lines)
    ask_acceptance(licence, accepted=request.accept_licence)
    with TransferDisplay(console, target.name, download.size, download.present_bytes, quiet=request.quiet) as display:
        return run_download(download, data, target.name, display, licence.name)


def _describe_start(target: _Target, download: Download) -> list[str]:
    repository, title = download.repository, target.entry.title if target.entry else target.name
    present = f", of which {format_size(download.present_bytes)} are here" if download.present_bytes else ""
    lines = [
        f"{title}: {repository.hub_id} at {repository.revision[:12]}",
        f"{format_size(download.size)} to download{present}, in {len(download.files)} files",
    ]
    if target.entry is not None:
        kinds = ("none", "int8", "int4")
        sizes = [format_size(target.entry.estimate_memory(kind)) for kind in kinds]
        lines.append(f"memory, estimated: {sizes[0]}; --quantize int8 {sizes[1]}, int4 {sizes[2]}")
    return lines


def _store_settings(target: _Target, quantization: QuantizationRequest | None, data: Path) -> ModelSettings:
    """Write the catalogue's recommendations down as the model's defaults, beneath what was chosen before."""
    settings_file, entry = read_model_settings(data), target.entry
    known = settings_file.get(target.name)
    settings = ModelSettings(
        steps=known.steps or (entry.steps if entry else None),
        sampler=known.sampler or (entry.sampler if entry else None),
        guidance=known.guidance or (entry.guidance if entry else None),
        quantize=quantization or known.quantize,
    )
    if settings != known:
        write_model_settings(data, settings_file.with_model(target.name, settings))
    return settings


def _describe_end(name: str, manifest: ModelManifest, settings: ModelSettings) -> str:
    chosen = [f"{settings.steps} steps"] if settings.steps else []
    chosen += [f"of {settings.sampler}"] if settings.sampler else []
    defaults = f", {' '.join(chosen)} by default" if chosen else ""
    quantize = f", --quantize {settings.quantize}" if settings.quantize else ""
    return (
        f"{name} is here: {format_size(manifest.size)}, every file checked{defaults}{quantize}. `darkroom up` offers "
        f'it from its next start on; `darkroom imagine "…" --model {name}` draws with it now.'
    )


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
