"""Folders of models that `darkroom models add` fetched: `<data>/models/NAME/`, each with its `manifest.json`.

The manifest says where the model came from, and the checksum of every file. A download is in `.partial/NAME` until it
is complete, so a half model is never offered.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from engine.contract import Name
from engine.hub.checksums import is_intact
from engine.hub.errors import HubError, explain_disk_error
from engine.hub.repository import RepositoryFile, is_safe
from engine.process.atomic_file import write_atomically

MODELS_FOLDER = "models"  # in the data folder
PARTIAL_FOLDER = ".partial"  # in that one: downloads that have not ended
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


def is_name(name: str) -> bool:
    """Whether a model may have this name."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        return False
    return True


def find_folder(data: Path, name: str) -> Path:
    """Return where the model of this name is, or would be. Raises `HubError` for what is no name."""
    if not is_name(name):
        raise HubError(f"{name[:80]!r} is no name of a model: letters, digits, dots and dashes, at most 64.")
    return data / MODELS_FOLDER / name


def find_partial_folder(data: Path, name: str) -> Path:
    """Return where the download of this model is until it is complete."""
    return data / MODELS_FOLDER / PARTIAL_FOLDER / find_folder(data, name).name


def read_manifest(folder: Path) -> ModelManifest | None:
    """Return a folder's manifest; None where it has none, one that cannot be read, or one of files elsewhere."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes(), type=ModelManifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return manifest if all(is_safe(file.path) for file in manifest.files) else None


def write_manifest(folder: Path, manifest: ModelManifest) -> None:
    """Write a folder's manifest. Raises `HubError` where the disk refuses it."""
    try:
        write_atomically(folder / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest)))
    except OSError as error:
        raise explain_disk_error(error, folder) from error


def list_added(data: Path) -> dict[str, ModelManifest]:
    """Return the added models by name, in the sequence of their names."""
    try:
        folders = sorted(folder for folder in (data / MODELS_FOLDER).iterdir() if is_name(folder.name))
    except OSError:
        return {}
    manifests = {folder.name: read_manifest(folder) for folder in folders}
    return {name: manifest for name, manifest in manifests.items() if manifest is not None}


def list_partial(data: Path) -> list[str]:
    """Return the names of models whose download has not ended."""
    try:
        return sorted(
            each.name
            for each in (data / MODELS_FOLDER / PARTIAL_FOLDER).iterdir()
            if each.is_dir() and is_name(each.name)
        )
    except OSError:
        return []


def find_damaged(
    folder: Path, manifest: ModelManifest, on_bytes: Callable[[int], None] = lambda _: None
) -> list[RepositoryFile]:
    """Return the files that are missing or not as the hub has them. Reads every byte."""
    return [file for file in manifest.files if not _is_file_intact(folder / file.path, file, on_bytes)]


def remove_model(data: Path, name: str) -> int:
    """Delete an added model, or a download that has not ended. Return the freed bytes. Raises `HubError`."""
    folders = [find_folder(data, name), find_partial_folder(data, name)]
    present = [each for each in folders if each.is_dir() and not each.is_symlink()]
    if not present or (present == folders[:1] and read_manifest(folders[0]) is None):
        raise HubError(f"{name} was not added by `darkroom models add`: delete its files yourself.")
    freed = sum(_measure_folder(each) for each in present)
    try:
        for each in present:
            shutil.rmtree(each)
    except OSError as error:
        raise HubError(f"{name} cannot be deleted: {(error.strerror or str(error)).lower()}.") from error
    return freed


def _measure_folder(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _is_file_intact(path: Path, file: RepositoryFile, on_bytes: Callable[[int], None]) -> bool:
    try:
        return is_intact(path, file, on_bytes)
    except OSError:
        return False
