"""Downloads a model's files into its folder: resumable at any byte, each checked against the hub's checksum.

Uses the transfer of `huggingface_hub` (its retries, proxies, tokens, HF_ENDPOINT). Its own downloads into a folder
begin anew after a crash, which is why the part files are ours.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, cast
from urllib.parse import quote

from engine.hub.added_models import MANIFEST_FILE, AddedPlace, ModelManifest, read_manifest, write_manifest
from engine.hub.catalogue import WEIGHT_SUFFIXES
from engine.hub.repository import (
    LIBRARY_NAME,
    HubError,
    Repository,
    RepositoryFile,
    explain_disk_error,
    explain_error,
    fetch_repository,
    get_endpoint,
    is_intact,
)

PART_SUFFIX = ".part"
SPARE_BYTES = 512 * 2**20  # bytes of the disk that a download leaves free
MAX_ATTEMPTS = 2  # of a file whose checksum is wrong


class OnProgress(Protocol):
    """Takes what happens: bytes that arrived, or that were read to check them; negative when a file starts anew."""

    def __call__(self, stage: Literal["download", "check"], byte_count: int) -> None: ...


@dataclass(frozen=True)
class Download:
    """What is to be downloaded, and where to. `present_bytes`: of it that an earlier try has left there."""

    repository: Repository
    files: tuple[RepositoryFile, ...]
    place: AddedPlace
    present_bytes: int

    @property
    def folder(self) -> Path:
        """Where the files are until all are there."""
        return self.place.partial

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def plan_download(repository: Repository, place: AddedPlace, files: Iterable[RepositoryFile]) -> Download:
    """Look at what is there of the files already. Raises `HubError` for weights that nothing could check."""
    chosen = tuple(files)
    folder = place.partial
    for file in chosen:
        if file.path.endswith(WEIGHT_SUFFIXES) and not file.has_checksum:
            raise HubError(f"The hub has no checksum of {file.path} of {repository.hub_id}, so it is not fetched.")
    present = sum(_count_present(folder / file.local_path, file) for file in chosen)
    return Download(repository, chosen, place, present)


def fetch_small_file(repository: Repository, file: RepositoryFile, max_bytes: int) -> bytes:
    """Return a file's content. Raises `HubError`, also for one of more than `max_bytes`, or for an empty one."""
    if not 0 < file.size <= max_bytes:
        raise HubError(f"{file.path} of {repository.hub_id} has {file.size:,} bytes, so it is not read.")
    content = BytesIO()
    with _explained(repository):
        _transfer(repository, file, content, 0, lambda stage, byte_count: None)
    return content.getvalue()


def plan_repair(manifest: ModelManifest, damaged: Iterable[RepositoryFile], place: AddedPlace) -> Download:
    """Take damaged files away, to be fetched again; it is not offered meanwhile. Raises `HubError`."""
    repository = fetch_repository(manifest.hub_id, manifest.revision)  # first: without the hub nothing is touched
    with _explained(repository):
        for file in damaged:
            (place.base / file.local_path).unlink(missing_ok=True)
        shutil.rmtree(place.partial, ignore_errors=True)
        place.partial.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix:
            place.manifest_path.unlink(missing_ok=True)
        else:
            place.path.replace(place.partial)
    return plan_download(repository, place, manifest.files)


def check_disk_space(*downloads: Download) -> None:
    """Raise `HubError` where the disk of a data folder has no room for what is missing."""
    if not downloads:
        return
    existing = next(each for each in downloads[0].folder.parents if each.exists())
    free = shutil.disk_usage(existing).free
    missing = sum(download.size - download.present_bytes for download in downloads)
    if free < missing + SPARE_BYTES:
        raise HubError(
            f"{missing / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free in {existing}: free some space, or "
            "name another data folder with --data or DARKROOM_DATA."
        )


def run_download(download: Download, on_progress: OnProgress, licence: str = "") -> ModelManifest:
    """Fetch what is missing, check every file, and put all in its place. Raises `HubError`."""
    manifest = ModelManifest(download.repository.hub_id, download.repository.revision, download.files, licence)
    with _explained(download.repository), lock_folder(download.folder, download.place.key):
        _drop_other_files(download.folder, download.files)
        write_manifest(download.folder / MANIFEST_FILE, manifest)
        for file in download.files:
            _fetch_file(download, file, on_progress)
        if download.place.suffix:
            _put_file_in_place(download.place, manifest)
        else:
            _put_in_place(download.folder, download.place.path)
    return manifest


def read_partial_revision(place: AddedPlace, hub_id: str) -> str | None:
    """Return the revision of a download of this model that has not ended; None without one."""
    manifest = read_manifest(place.partial / MANIFEST_FILE)
    return manifest.revision if manifest is not None and manifest.hub_id == hub_id else None


def _fetch_file(download: Download, file: RepositoryFile, on_progress: OnProgress) -> None:
    """Fetch and check one file. A file that is there already is only checked."""
    target = download.folder / file.local_path
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(MAX_ATTEMPTS):
        part = target if target.is_file() else target.with_name(target.name + PART_SUFFIX)
        if part != target:
            _fill_part(download.repository, file, part, on_progress)
        if is_intact(part, file, lambda byte_count: on_progress("check", byte_count)):
            part.replace(target)
            return
        on_progress("download", -min(part.stat().st_size, file.size))
        part.unlink()
    raise HubError(
        f"{file.path} of {download.repository.hub_id} does not have the hub's checksum: the way here, or a proxy, "
        "changes files; try another network."
    )


def _fill_part(repository: Repository, file: RepositoryFile, part: Path, on_progress: OnProgress) -> None:
    with part.open("ab") as content:
        size = content.tell()
        if size > file.size:
            on_progress("download", -file.size)
            content.truncate(0)
            size = 0
        _transfer(repository, file, content, size, on_progress)
        content.flush()
        os.fsync(content.fileno())


def _transfer(
    repository: Repository, file: RepositoryFile, content: BinaryIO, resume_size: int, on_progress: OnProgress
) -> None:
    """Append the file's bytes from `resume_size` on. Raises what `huggingface_hub` raises."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if file.size == 0:
        return  # an empty file has no range to ask for
    received = resume_size

    class ByteCounter:
        """What `huggingface_hub` takes for a progress bar."""

        def __init__(self, **_: Any) -> None: ...

        def __enter__(self) -> ByteCounter:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, byte_count: float | None = 1) -> None:
            nonlocal received
            received += int(byte_count or 0)
            if received > file.size:
                raise HubError(f"{file.path} of {repository.hub_id} is larger than the hub says: it is not taken.")
            on_progress("download", int(byte_count or 0))

    url = f"{get_endpoint()}/{repository.hub_id}/resolve/{repository.revision}/{quote(file.path)}"
    headers = {**cast(Any, build_hf_headers)(library_name=LIBRARY_NAME), "Accept-Encoding": "identity"}
    get: Any = http_get
    get(url, content, resume_size=resume_size, headers=headers, expected_size=file.size, tqdm_class=ByteCounter)


def _count_present(path: Path, file: RepositoryFile) -> int:
    for each in (path, path.with_name(path.name + PART_SUFFIX)):
        if each.is_file():
            return min(each.stat().st_size, file.size)
    return 0


def _drop_other_files(folder: Path, files: Iterable[RepositoryFile]) -> None:
    names = {MANIFEST_FILE, *(name for file in files for name in (file.local_path, file.local_path + PART_SUFFIX))}
    for path in [each for each in folder.rglob("*") if each.is_file()]:
        if path.relative_to(folder).as_posix() not in names:
            path.unlink()


def _put_in_place(partial: Path, target: Path) -> None:
    """Make the complete folder the model's; an older one of the same name goes."""
    older = partial.with_name(f".{partial.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    if target.exists():
        target.replace(older)
    partial.replace(target)
    shutil.rmtree(older, ignore_errors=True)


def _put_file_in_place(place: AddedPlace, manifest: ModelManifest) -> None:
    """Write the manifest first: a file without one would be somebody else's."""
    write_manifest(place.manifest_path, manifest)
    (place.partial / place.path.name).replace(place.path)
    shutil.rmtree(place.partial, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path, name: str) -> Generator[None]:
    """Keep a second process from the same download. The lock ends with this process. Raises `HubError`."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise HubError(f"Another process adds {name} already: wait for it.") from error
    finally:
        os.close(lock)


@contextmanager
def _explained(repository: Repository) -> Generator[None]:
    try:
        yield
    except HubError:
        raise
    except OSError as error:
        if error.errno is not None and not hasattr(error, "response"):
            raise explain_disk_error(error, "The data folder") from error
        raise explain_error(error, repository.hub_id, repository.revision) from error
    except Exception as error:
        raise explain_error(error, repository.hub_id, repository.revision) from error
