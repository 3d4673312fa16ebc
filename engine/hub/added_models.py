"""Models and parts that `darkroom models add` fetched, each with a manifest.

A folder `<data>/models/NAME/` has its `manifest.json` inside; a single file `<data>/models/NAME.gguf` has
`NAME.manifest.json` beside it. Parts lie in `controlnets/`, `vaes/` and so on. The manifest says where the files came
from, and the checksum of each. A download is in `.partial/NAME` until it is complete, so half a model is never offered.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from engine.contract import JobRejected, Name
from engine.hub.catalogue import FOLDER_BY_KIND, PART_KINDS, WEIGHT_SUFFIXES, PartKind
from engine.hub.repository import HubError, RepositoryFile, explain_disk_error, is_intact, is_safe
from engine.process.model_settings import EMBEDDED_MODEL, read_model_settings
from engine.process.system import write_atomically

MODELS_FOLDER = FOLDER_BY_KIND["model"]  # in the data folder
PARTIAL_FOLDER = ".partial"  # in a kind's folder: downloads that have not ended
MANIFEST_FILE = "manifest.json"
HUB_ID_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?\Z"


class ModelManifest(Struct, frozen=True):
    """Where a model came from, and its files. `licence`: as it was shown when the model was added."""

    hub_id: Annotated[str, Meta(pattern=HUB_ID_PATTERN, max_length=200)]
    revision: Annotated[str, Meta(pattern=r"^[0-9a-f]{40}\Z")]
    files: tuple[RepositoryFile, ...]
    licence: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class AddedPlace:
    """Where a model or part is, or would be. `suffix`: of a single file; empty: it is a folder."""

    data: Path
    name: str
    kind: PartKind = "model"
    suffix: str = ""

    @property
    def key(self) -> str:
        """What `darkroom models` calls it: `sdxl`, `flux.gguf`, `controlnets/canny`."""
        folder = "" if self.kind == "model" else f"{FOLDER_BY_KIND[self.kind]}/"
        return f"{folder}{self.name}{self.suffix}"

    @property
    def folder(self) -> Path:
        """The folder of the kind."""
        return self.data / FOLDER_BY_KIND[self.kind]

    @property
    def path(self) -> Path:
        """The folder or the single file itself."""
        return self.folder / f"{self.name}{self.suffix}"

    @property
    def base(self) -> Path:
        """What the local paths of its files begin at."""
        return self.folder if self.suffix else self.path

    @property
    def partial(self) -> Path:
        """Where its download is until it is complete."""
        return self.folder / PARTIAL_FOLDER / f"{self.name}{self.suffix}"

    @property
    def manifest_path(self) -> Path:
        return self.folder / f"{self.name}.{MANIFEST_FILE}" if self.suffix else self.path / MANIFEST_FILE


def is_name(name: str) -> bool:
    """Whether a model may have this name."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        return False
    return True


def find_place(data: Path, name: str, kind: PartKind = "model", suffix: str = "") -> AddedPlace:
    """Return where the model or part of this name is, or would be. Raises `HubError` for what is no name."""
    if not is_name(name):
        raise HubError(f"{name[:80]!r} is no name of a model: letters, digits, dots and dashes, at most 64.")
    return AddedPlace(data, name, kind, suffix)


def read_place(place: AddedPlace) -> ModelManifest | None:
    """Return the manifest of what is there; None where nothing is that was added."""
    manifest = read_manifest(place.manifest_path)
    if manifest is None or not place.suffix:
        return manifest
    is_its_own = [file.local_path for file in manifest.files] == [place.path.name]
    return manifest if is_its_own and place.path.is_file() else None  # without its file, the download has not ended


def write_manifest(path: Path, manifest: ModelManifest) -> None:
    """Write a manifest. Raises `HubError` where the disk refuses it."""
    try:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(manifest)))
    except OSError as error:
        raise explain_disk_error(error, path.parent) from error


def list_added(data: Path) -> dict[str, ModelManifest]:
    """Return the added models by name, in the sequence of their names."""
    return {place.name: manifest for place, manifest in list_places(data, ("model",)).values()}


def list_places(data: Path, kinds: tuple[PartKind, ...] = PART_KINDS) -> dict[str, tuple[AddedPlace, ModelManifest]]:
    """Return what was added by key: models first, each kind in the sequence of its names."""
    places = (place for kind in kinds for place in _find_places(data, kind))
    manifests = ((place, read_place(place)) for place in places)
    return {place.key: (place, manifest) for place, manifest in manifests if manifest is not None}


def list_partial(data: Path) -> list[str]:
    """Return the keys of models and parts whose download has not ended."""
    return [place.key for kind in PART_KINDS for place in _find_partial(data, kind)]


def find_partial(data: Path, key: str) -> AddedPlace | None:
    """Return the place of a download that has not ended, by its key."""
    return next((place for kind in PART_KINDS for place in _find_partial(data, kind) if place.key == key), None)


def find_damaged(
    folder: Path, manifest: ModelManifest, on_bytes: Callable[[int], None] = lambda _: None
) -> list[RepositoryFile]:
    """Return the files that are missing or not as the hub has them. Reads every byte."""
    return [file for file in manifest.files if not _is_file_intact(folder / file.local_path, file, on_bytes)]


def remove_place(place: AddedPlace) -> int:
    """Delete what was added, or a download that has not ended. Return the freed bytes. Raises `HubError`."""
    present = [place.path] if read_place(place) is not None and not place.path.is_symlink() else []
    present += [place.partial] if place.partial.is_dir() and not place.partial.is_symlink() else []
    if not present:
        raise HubError(f"{place.key} was not added by `darkroom models add`: delete its files yourself.")
    freed = sum(_measure(each) for each in present)
    try:
        for each in present:
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink()
        if place.suffix:
            place.manifest_path.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(f"{place.key} cannot be deleted: {(error.strerror or str(error)).lower()}.") from error
    return freed


def read_manifest(path: Path) -> ModelManifest | None:
    """Return a manifest; None where there is none, one that cannot be read, or one of files elsewhere."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=ModelManifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return manifest if all(is_safe(path) for file in manifest.files for path in (file.path, file.local_path)) else None


def _find_places(data: Path, kind: PartKind) -> Iterator[AddedPlace]:
    """Yield the places that may have a manifest: all folders, and each file beside its manifest."""
    try:
        paths = sorted((data / FOLDER_BY_KIND[kind]).iterdir())
    except OSError:
        return
    for path in paths:
        suffix = path.suffix if path.suffix in WEIGHT_SUFFIXES and path.is_file() else ""
        name = path.name.removesuffix(suffix)
        if is_name(name) and (suffix or path.is_dir()):
            yield AddedPlace(data, name, kind, suffix)


def _find_partial(data: Path, kind: PartKind) -> list[AddedPlace]:
    try:
        folders = sorted(each for each in (data / FOLDER_BY_KIND[kind] / PARTIAL_FOLDER).iterdir() if each.is_dir())
    except OSError:
        return []
    suffixes = [next((each for each in WEIGHT_SUFFIXES if folder.name.endswith(each)), "") for folder in folders]
    places = [
        AddedPlace(data, folder.name.removesuffix(suffix), kind, suffix)
        for folder, suffix in zip(folders, suffixes, strict=True)
    ]
    return [place for place in places if is_name(place.name)]


def _measure(path: Path) -> int:
    return sum(each.lstat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def _is_file_intact(path: Path, file: RepositoryFile, on_bytes: Callable[[int], None]) -> bool:
    try:
        return is_intact(path, file, on_bytes)
    except OSError:
        return False


ADDED_MODELS = "added"  # in place of a model's name: all of these
MAX_OFFERED = 64  # models that a worker may announce


def list_offered(data: Path) -> list[str]:
    """Return their names. Raises `ModelSettingsError` where the settings of the models cannot be read."""
    default = read_model_settings(data).default
    chosen = [default] if default and _is_here(data, default) else []
    return list(dict.fromkeys([*chosen, EMBEDDED_MODEL, *list_added(data)]))[:MAX_OFFERED]


def expand_names(names: tuple[str, ...], data: Path) -> list[str]:
    """Return the names, with `added` replaced by what it stands for. Raises `ModelSettingsError`."""
    expanded = [each for name in names for each in (list_offered(data) if name == ADDED_MODELS else [name])]
    return list(dict.fromkeys(expanded))


def _is_here(data: Path, name: str) -> bool:
    path = data / MODELS_FOLDER / name
    is_file = any(path.with_name(f"{name}{suffix}").is_file() for suffix in WEIGHT_SUFFIXES)
    return name == EMBEDDED_MODEL or path.is_dir() or is_file


REVISIONS_FILE = "hub-revisions.json"


def read_revisions(data: Path) -> dict[str, str]:
    """Return the remembered revisions by hub id. Raises `JobRejected` where the file cannot be read."""
    path = data / REVISIONS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:  # the newest revision instead would be what the file guards against
        raise JobRejected(
            f"The file {path} cannot be read: mend it, or delete it to take the newest revisions.", "worker"
        ) from error


def remember_revision(data: Path, hub_id: str, revision: str) -> None:
    """Write a revision down, unless it is remembered already. Raises `JobRejected` or OSError."""
    revisions = read_revisions(data)
    if revisions.get(hub_id) != revision:
        content = json.dumps(revisions | {hub_id: revision}, indent=1).encode() + b"\n"
        write_atomically(data / REVISIONS_FILE, content)
