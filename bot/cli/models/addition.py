"""`darkroom models add`: from a name to checked files of a model with its defaults, or of a part.

Shows the licence of what it fetches, and asks where it asks to be accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from rich.console import Console

from bot.cli.models.upkeep import TransferDisplay, format_file_count, parse_quantization
from bot.domain.errors import UserError
from bot.domain.texts import clean_text
from engine.hub.added_models import (
    ADDED_MODELS,
    EMBEDDED_MODEL,
    AddedPlace,
    ModelManifest,
    find_place,
    is_name,
    read_place,
)
from engine.hub.catalogue import (
    PART_KINDS,
    TITLES,
    WEIGHT_SUFFIXES,
    CatalogueEntry,
    PartEntry,
    PartKind,
    find_entry,
    find_part_entry,
    read_catalogue,
    read_part_catalogue,
    suggest_names,
)
from engine.hub.download import Download, check_disk_space, plan_download, read_partial_revision, run_download
from engine.hub.part_selection import Selection, WantedPart, select_part, select_rest
from engine.hub.repository import HubError, Repository, fetch_repository, get_endpoint
from engine.hub.revisions import read_revisions, remember_revision
from engine.process.load_progress import format_size
from engine.process.memory_requests import QuantizationRequest
from engine.process.model_settings import ModelSettings, read_model_settings, write_model_settings

# How a prompt uses a part of this name, by kind.
USE_BY_KIND: Mapping[PartKind, str] = MappingProxyType(
    {
        "controlnet": "`--control {}:PICTURE` draws with it",
        "ip-adapter": "`--reference {}:PICTURE` draws with it",
        "vae": "`--vae {}` draws with it",
        "lora": "`--lora {}` draws with it",
        "embedding": "a prompt names it as `<{}>`",
    }
)


@dataclass(frozen=True)
class AddRequest:
    """What was typed. `called`: the name here; empty: the catalogue's, or the last part of the hub's.

    `kind`: a word of `PartKind`; `encoder`: the folder of an IP-Adapter's image encoder in its repository. `pipeline`:
    where the rest of the pipeline of a single network comes from.
    """

    name: str
    called: str = ""
    quantize: str = ""
    accept_licence: bool = False
    revision: str = ""
    quiet: bool = False
    kind: str = ""
    encoder: str = ""
    pipeline: str = ""


@dataclass(frozen=True)
class _Target:
    """What to add: its name here, its name on the hub, what of it, and the chosen revision; empty: none is chosen."""

    name: str
    hub_id: str
    wanted: WantedPart
    revision: str
    entry: CatalogueEntry | PartEntry | None


def add_model(request: AddRequest, data: Path) -> dict[str, Any]:
    """Add a model or part; return what `--json` prints. Raise `UserError`, `HubError` or `JobRejected`."""
    console = Console(file=sys.stderr)
    quantization = parse_quantization(request.quantize)
    target = _find_target(request)
    read_model_settings(data)  # a file that cannot be read is refused before gigabytes are fetched
    repository = _fetch_known_repository(target, data)
    selection = select_part(repository, target.wanted, target.name)
    place = _find_free_place(target, selection, data)
    if quantization and selection.kind != "model":
        raise UserError(f"--quantize is for models: {place.key} is {_with_article(selection.kind)}.")
    network = _plan(repository, selection, place, target)
    rest = _plan_rest(request, place) if request.pipeline else None
    # All is asked before anything is fetched, and the rest is fetched first: a network alone is not offered.
    plans = [rest, network] if rest else [network]
    check_disk_space(*(plan.download for plan in plans if plan.manifest is None))
    licences = [_ask_to_fetch(plan, console, request) for plan in plans[::-1]][::-1]
    pairs = zip(plans, licences, strict=True)
    manifest = [_fetch(plan, licence, console, quiet=request.quiet) for plan, licence in pairs][-1]
    entry = (rest or network).entry
    settings = _store_settings(target.name, entry, quantization, data) if place.kind == "model" else ModelSettings()
    if not request.quiet:
        _say(console, _describe_end(place, manifest, settings))
    return {
        "name": target.name,
        "kind": place.kind,
        "hub_id": manifest.hub_id,
        "revision": manifest.revision,
        "bytes": manifest.size,
        "files": len(manifest.files),
        "licence": manifest.licence,
        "folder": str(place.path),
        **{name: getattr(settings, name) for name in ("steps", "sampler", "guidance", "quantize")},
    }


def _plan_rest(request: AddRequest, place: AddedPlace) -> FetchPlan:
    """Return what a file that is only a network lacks, to be fetched into the folder of its name."""
    if place.kind != "model" or not place.suffix:
        raise UserError("--pipeline is for a file that is only a network, such as a GGUF file.")
    target = _find_target(replace(request, name=request.pipeline, called=place.name, kind="", revision=""))
    if target.wanted.path or isinstance(target.entry, PartEntry):
        raise UserError(f"--pipeline is owner/name of a whole pipeline, not {request.pipeline[:80]!r}.")
    repository = _fetch_known_repository(target, place.data)
    rest = select_rest(repository)
    return _plan(repository, rest, _find_free_place(target, rest, place.data), target)


def _plan(repository: Repository, selection: Selection, place: AddedPlace, target: _Target) -> FetchPlan:
    manifest = _find_present(place, repository, selection)
    return FetchPlan(target.name, target.entry, plan_download(repository, place, selection.files), manifest)


def _find_target(request: AddRequest) -> _Target:
    """Return what to fetch, from a name of the catalogue, `owner/name`, or `owner/name:path`."""
    kind = _parse_kind(request.kind)
    entry = find_entry(request.name) or find_part_entry(request.name)
    if isinstance(entry, PartEntry):
        hub_id = entry.hub_id
        wanted = WantedPart(entry.kind, entry.path, request.encoder or entry.encoder)
    else:
        hub_id, _, path = (entry.hub_id if entry else request.name).partition(":")
        wanted = WantedPart(kind, path.strip("/"), request.encoder.strip("/"))
    if entry is not None and kind not in (None, entry.kind if isinstance(entry, PartEntry) else "model"):
        raise UserError(f"{entry.name} of the catalogue is no {TITLES[kind]}.")
    name = request.called or (entry.name if entry else _make_name(hub_id, wanted.path))
    if not is_name(name):
        raise UserError(f"{name[:80]!r} is no name for a model: choose letters, digits, dots and dashes with --name.")
    if name in (EMBEDDED_MODEL, ADDED_MODELS):
        raise UserError(f"--model {name} has a meaning of its own: choose another name with --name.")
    return _Target(name, hub_id, wanted, request.revision, entry)


def _parse_kind(word: str) -> PartKind | None:
    kind: PartKind | None = next((kind for kind in PART_KINDS if kind == word.casefold()), None)
    if kind is not None or not word:
        return kind
    raise UserError(f"--as: {', '.join(PART_KINDS[:-1])} or {PART_KINDS[-1]} is needed, not {word[:40]!r}.")


def _make_name(hub_id: str, path: str) -> str:
    """Return the name of a file without its suffix, else that of the repository."""
    last = (path or hub_id).rpartition("/")[2]
    suffix = next((each for each in WEIGHT_SUFFIXES if path.endswith(each)), "")
    return last.removesuffix(suffix)


def _find_free_place(target: _Target, selection: Selection, data: Path) -> AddedPlace:
    """Return where it will be. Raise `UserError` where something of that name is, in this form or another."""
    place = find_place(data, target.name, selection.kind, selection.suffix)
    others = [replace(place, suffix=suffix) for suffix in ("", *WEIGHT_SUFFIXES)]
    if any(other.path.exists() and not _may_stay(other, place) for other in others):
        title = TITLES[place.kind]
        raise UserError(f"{place.folder} has another {title} called {place.name}: choose a name with --name.")
    return place


def _may_stay(other: AddedPlace, place: AddedPlace) -> bool:
    """Whether what is at `other` may stay: itself to be replaced, or network and rest of one model."""
    is_added = read_place(other) is not None
    if other == place or place.kind != "model":
        return is_added and other == place
    return not other.suffix or (is_added and not place.suffix)


def _fetch_known_repository(target: _Target, data: Path) -> Repository:
    """Ask the hub, for the chosen revision before that of an interrupted download, of the catalogue, and a remembered
    one. For a name that it does not have, say which ones are like it.
    """
    pinned = target.entry.revision if target.entry else ""
    partial_revision = _read_partial_revision(target, data)
    revision = target.revision or partial_revision or pinned or read_revisions(data).get(target.hub_id)
    try:
        return fetch_repository(target.hub_id, revision or None)
    except HubError as error:
        names = [entry.name for entry in (*read_catalogue(), *read_part_catalogue())]
        likely = suggest_names(target.hub_id, names)
        if target.entry is None and likely and error.sentence.startswith("The hub has no model"):
            raise HubError(f"{error.sentence} Did you mean {' or '.join(likely)}?") from error
        raise


def _read_partial_revision(target: _Target, data: Path) -> str | None:
    """Return the revision of an interrupted download of this name, whatever it is."""
    places = (find_place(data, target.name, kind, suffix) for kind in PART_KINDS for suffix in ("", *WEIGHT_SUFFIXES))
    return next(filter(None, (read_partial_revision(place, target.hub_id) for place in places)), None)


def _find_present(place: AddedPlace, repository: Repository, selection: Selection) -> ModelManifest | None:
    """Return the manifest if these files are here at that revision already."""
    manifest = read_place(place)
    if manifest is not None and manifest.hub_id != repository.hub_id:
        raise UserError(f"{place.key} is {manifest.hub_id} here: choose another name with --name.")
    if manifest is None or manifest.revision != repository.revision:
        return None
    present = {file.path for file in manifest.files}  # a whole model also has the rest of one
    return manifest if present >= {file.path for file in selection.files} else None


def _store_settings(
    name: str, origin: CatalogueEntry | PartEntry | None, quantization: QuantizationRequest | None, data: Path
) -> ModelSettings:
    """Write the catalogue's recommendations down as the model's defaults, beneath what was chosen before."""
    settings_file = read_model_settings(data)
    known = settings_file.get(name)
    entry = origin if isinstance(origin, CatalogueEntry) else known
    settings = ModelSettings(
        steps=known.steps or entry.steps,
        sampler=known.sampler or entry.sampler,
        guidance=known.guidance or entry.guidance,
        quantize=quantization or known.quantize,
    )
    if settings != known:
        write_model_settings(data, settings_file.with_model(name, settings))
    return settings


def _describe_end(place: AddedPlace, manifest: ModelManifest, settings: ModelSettings) -> str:
    begin = f"{place.key} is here: {format_size(manifest.size)}, every file checked"
    if place.kind != "model":
        return f"{begin}. Workers find it when they start; {USE_BY_KIND[place.kind].format(place.name)}."
    chosen = [f"{settings.steps} steps"] if settings.steps else []
    chosen += [f"of {settings.sampler}"] if settings.sampler else []
    defaults = f", {' '.join(chosen)} by default" if chosen else ""
    quantize = f", --quantize {settings.quantize}" if settings.quantize else ""
    folder = place.folder / place.name
    needs_rest = place.suffix == ".gguf" and not (folder / "model_index.json").is_file()
    rest = f" It is only a network: the rest of its pipeline belongs into {folder}, or --pipeline fetches it."
    return (
        f"{begin}{defaults}{quantize}. `darkroom up` offers it from its next start on; "
        f'`darkroom imagine "…" --model {place.name}` draws with it now.{rest if needs_rest else ""}'
    )


def _with_article(kind: PartKind) -> str:
    return f"{'an' if TITLES[kind][0] in 'aeiou' else 'a'} {TITLES[kind]}"


@dataclass(frozen=True)
class FetchPlan:
    """What is to be fetched, and its name here. `manifest`: of what is here already; None: it is to be fetched."""

    name: str
    entry: CatalogueEntry | PartEntry | None
    download: Download
    manifest: ModelManifest | None


def _ask_to_fetch(plan: FetchPlan, console: Console, request: AddRequest) -> str:
    """Say what is fetched, and ask for its licence; return the licence's name. Raises `UserError`."""
    if plan.manifest is not None:
        if not request.quiet:
            key = plan.download.place.key
            _say(console, f"{key} is here already, at this revision; `darkroom models verify` checks its files.")
        return plan.manifest.licence
    licence = _describe_licence(plan.download.repository, plan.entry)
    if not request.quiet:
        restrictions = [f"         {licence.restrictions}"] if licence.restrictions else []
        _say(console, *_describe_start(plan), f"licence: {licence.name}, {licence.link}", *restrictions)
    if licence.asks and not request.accept_licence:
        _ask_acceptance(licence)
    return licence.name


def _fetch(plan: FetchPlan, licence: str, console: Console, *, quiet: bool) -> ModelManifest:
    """Return the manifest of what is here already, or is fetched now. Raises `HubError`."""
    if plan.manifest is not None:
        return plan.manifest
    download = plan.download
    repository = plan.download.repository
    with TransferDisplay(console, download.place.key, download.size, download.present_bytes, quiet=quiet) as display:
        manifest = run_download(download, display, licence)
    remember_revision(download.place.data, repository.hub_id, repository.revision)
    return manifest


def _say(console: Console, *lines: str) -> None:
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


# Names of licences, as the hub writes them, that restrict no use: they need no question.
FREE_LICENCES = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense"})


@dataclass(frozen=True)
class Licence:
    """What is shown before a download. `asks`: it must be accepted."""

    name: str
    restrictions: str
    link: str
    asks: bool


def _describe_licence(repository: Repository, entry: CatalogueEntry | PartEntry | None) -> Licence:
    """Return the licence as the catalogue says it; else as the hub does, which asks unless it is known to be free."""
    page = f"{get_endpoint()}/{repository.hub_id}"
    link = clean_text(repository.licence_link)
    link = link if link.startswith(("https://", "http://")) else page
    if entry is not None:
        return Licence(entry.licence, entry.restrictions, link, entry.asks)
    name = clean_text(repository.licence)
    if not name:
        return Licence("none is named", "without one you may not use it unless its authors allow it", page, True)
    is_free = name.lower() in FREE_LICENCES
    return Licence(name, "" if is_free else "read what it allows before you accept it", link, not is_free)


def _ask_acceptance(licence: Licence) -> None:
    """Ask for the licence. Raise `UserError` without an answer, or for no."""
    if not sys.stdin.isatty():
        raise UserError(f"Read its licence ({licence.name}, {licence.link}), and add --accept-licence to accept it.")
    if not typer.confirm("Do you accept this licence?", default=False, err=True):
        raise UserError("Nothing was downloaded, since the licence was not accepted.")
