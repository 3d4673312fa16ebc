"""Backups as files: uncompressed tars of a manifest, a database and pictures named by their SHA-256; and their restore.

A backup is untrusted input. It is uncompressed: pictures would not shrink, and an uncompressed file cannot expand
beyond its size. `darkroom restore` checks every part, and its data folder appears complete or not at all. Jobs that
were open in the backup continue when a bot starts on the folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Annotated

import typer

from bot.domain.errors import UserError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_KEYS = ("made", "database", "pictures", "format")  # of the fields of `Manifest`
DATABASE_NAME = "darkroom.sqlite"
PICTURE_PATTERN = re.compile(r"pictures/([0-9a-f]{64})")
MAX_MANIFEST_BYTES = 64 * 1024
MAX_PICTURE_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Manifest:
    """A backup's description of itself. `created_at`: seconds since 1970.

    `database`: its SHA-256, empty if the backup has only pictures.
    """

    created_at: float
    database: str
    pictures: int
    format: int = FORMAT_VERSION


@dataclass(frozen=True)
class ArchivePart:
    """One file of a backup: the database, or a picture, whose `name` is its SHA-256."""

    name: str
    size: int
    content: IO[bytes]


class ArchiveWriter:
    """Writes a backup's parts in this order: manifest, database, pictures."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `close`

    def add_manifest(self, manifest: Manifest) -> None:
        values = zip(MANIFEST_KEYS, astuple(manifest), strict=True)
        self._add(MANIFEST_NAME, json.dumps(dict(values)).encode())

    def add_database(self, file: Path) -> None:
        with file.open("rb") as stream:
            self._tar.addfile(_make_entry(DATABASE_NAME, file.stat().st_size), stream)

    def add_picture(self, sha256: str, content: bytes) -> None:
        self._add(f"pictures/{sha256}", content)

    def _add(self, name: str, content: bytes) -> None:
        self._tar.addfile(_make_entry(name, len(content)), io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


def _make_entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o600
    entry.mtime = int(time.time())
    return entry


def read_archive(file: IO[bytes]) -> Iterator[Manifest | ArchivePart]:
    """Yield the manifest, then each part once. Raise `UserError` at an entry that Darkroom's backups do not have."""
    seen_names: set[str] = set()
    for tar, entry in _read_entries(file):
        if entry.name in seen_names:
            raise UserError(f"This backup has {_quote(entry.name)} twice.")
        if not seen_names and entry.name != MANIFEST_NAME:
            raise UserError("This is no backup of Darkroom: it does not begin with a manifest.")
        seen_names.add(entry.name)
        yield _read_part(tar, entry)
    if not seen_names:
        raise UserError("This is no backup of Darkroom: it is empty.")


def _read_entries(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with translate_errors():
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it only wraps `file`, which the caller closes
    while True:
        with translate_errors():
            entry = tar.next()
            if entry is not None and entry.size < 0:
                raise tarfile.ReadError(f"{_quote(entry.name)} has a negative size")
        if entry is None:
            return
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - else tarfile keeps every entry in memory
        yield tar, entry


@contextmanager
def translate_errors() -> Generator[None]:
    """Turn every error of `tarfile` into `UserError`: it trusts a file's numbers, and fails in many ways."""
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"This backup cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"This backup cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise UserError("This backup cannot be read: its description of its files is wrong.") from error


def _read_part(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Manifest | ArchivePart:
    match = PICTURE_PATTERN.fullmatch(entry.name)
    if not entry.isreg() or entry.issparse() or not (match or entry.name in (MANIFEST_NAME, DATABASE_NAME)):
        raise UserError(f"This is no backup of Darkroom: {_quote(entry.name)} has no place in one.")
    content = tar.extractfile(entry)
    assert content is not None, "a regular file"
    if entry.name == MANIFEST_NAME:
        with translate_errors():
            manifest_bytes = content.read(MAX_MANIFEST_BYTES + 1)
        return _parse_manifest(manifest_bytes)
    if match and entry.size > MAX_PICTURE_BYTES:
        raise UserError(f"This is no backup of Darkroom: {_quote(entry.name)} is too large for a picture.")
    return ArchivePart(match[1] if match else DATABASE_NAME, entry.size, content)


def _parse_manifest(content: bytes) -> Manifest:
    try:
        made, database, pictures, version = (json.loads(content)[key] for key in MANIFEST_KEYS)
        manifest = Manifest(float(made), str(database), int(pictures), int(version))
        if not math.isfinite(manifest.created_at):
            raise ValueError("not a time")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError("This is no backup of Darkroom: its manifest cannot be read.") from error
    if manifest.format != FORMAT_VERSION:
        raise UserError("This backup is of a later version of Darkroom: restore it with that one.")
    return manifest


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file of any size."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_part(part: ArchivePart, target: Path) -> None:
    """Write a part to a new file that only its owner can read. Raise `UserError` if the backup ends too early."""
    remaining = part.size
    with target.open("xb") as output:
        target.chmod(0o600)
        while remaining:
            with translate_errors():
                chunk = part.content.read(min(CHUNK_BYTES, remaining))
            if not chunk:
                raise UserError("This backup cannot be read: it ends too early.")
            output.write(chunk)
            remaining -= len(chunk)
        output.flush()
        os.fsync(output.fileno())


def _quote(name: str) -> str:
    return f"“{''.join(character if character.isprintable() else '?' for character in name[:80])}”"


MAX_NAMES_SHOWN = 3  # names of missing pictures


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", exists=True, dir_okay=False, help="A backup.")],
    data: Annotated[Path, typer.Option(help="The new data folder; it must be empty, or not exist yet.")],
) -> None:
    """Make a data folder from a backup; every picture is checked against its name."""
    data = data.expanduser().absolute()
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise UserError(f"{data} is not empty: name a new folder with --data, so that nothing is lost.")
    with _staging_folder(data) as staging, file.open("rb") as stream:
        lines = asyncio.run(_unpack_backup(stream, staging))
    typer.echo("\n".join([f"Restored into {data}.", *lines]))


@contextmanager
def _staging_folder(data: Path) -> Generator[Path]:
    """Yield a temporary folder that becomes `data` at the end; an error removes it."""
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{data.name}.restoring-", dir=data.parent))
        try:
            yield staging
            staging.rename(data)  # replaces nothing but an empty folder
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{data} cannot be written: {(error.strerror or str(error)).lower()}.") from error


async def _unpack_backup(file: IO[bytes], staging: Path) -> list[str]:
    from bot.pictures.picture_store import PictureStore

    pictures = PictureStore(staging / "pictures")
    restored_names = set[str]()
    manifest = None
    for part in read_archive(file):
        if isinstance(part, Manifest):
            manifest = part
        elif part.name == DATABASE_NAME:
            await asyncio.to_thread(_restore_database, part, manifest, staging / DATABASE_NAME)
        else:
            with translate_errors():
                content = part.content.read(part.size)
            if len(content) != part.size or hashlib.sha256(content).hexdigest() != part.name:
                sentence = (
                    f"The picture {part.name[:12]}… in this backup is not what its name says: the file is damaged."
                )
                raise UserError(sentence)
            restored_names.add(await pictures.put(content))
    if manifest is not None and manifest.database:
        return _check_database(staging / DATABASE_NAME, restored_names)
    return [f"{len(restored_names)} pictures and films; put the dump of their database back with pg_restore."]


def _restore_database(part: ArchivePart, manifest: Manifest | None, target: Path) -> None:
    write_part(part, target)
    if manifest is None or file_sha256(target) != manifest.database:
        raise UserError("The database in this backup is not the one that was put into it: the file is damaged.")


def _check_database(database: Path, restored_names: set[str]) -> list[str]:
    from bot.features.backup import store as sqlite_backup

    if not database.exists():
        raise UserError("This backup ends before its database: the file is damaged.")
    try:
        names = sqlite_backup.list_copy_hashes(database)
    except sqlite_backup.UnusableDatabase as error:
        raise UserError(f"The database in this backup cannot be used. {error}") from error
    count = len(restored_names)
    lines = [f"The database and {count} pictures and films; jobs that were open go on when a bot starts there."]
    if missing := [f"{name[:12]}…" for name in names if name not in restored_names]:
        pictures = "1 picture that it names is" if len(missing) == 1 else f"{len(missing)} pictures that it names are"
        more = ["…"] if len(missing) > MAX_NAMES_SHOWN else []
        lines.append(f"{pictures} not in the backup: {', '.join(missing[:MAX_NAMES_SHOWN] + more)}")
    return lines
