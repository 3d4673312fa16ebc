"""Reads and writes backups: uncompressed tars of a manifest, a database and pictures named by their SHA-256.

A backup that is read is untrusted input. It is not compressed: pictures would not shrink, and an uncompressed file
cannot expand beyond its size.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from bot.refused import Refused

FORMAT = 1
MANIFEST, DATABASE = "manifest.json", "darkroom.sqlite"
PICTURE = re.compile(r"pictures/([0-9a-f]{64})")
MOST = {"manifest": 64 * 1024, "picture": 64 * 1024 * 1024}  # bytes
CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Manifest:
    """A backup's description of itself. `database`: its SHA-256, empty if the backup has only pictures."""

    made: float
    database: str
    pictures: int
    format: int = FORMAT


@dataclass(frozen=True)
class Part:
    """One file of a backup: the database, or a picture, whose `name` is its SHA-256."""

    name: str
    size: int
    content: IO[bytes]


class Packer:
    """Writes a backup's parts in this order: manifest, database, pictures."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `close`

    def manifest(self, manifest: Manifest) -> None:
        self._add(MANIFEST, json.dumps(asdict(manifest)).encode())

    def database(self, file: Path) -> None:
        with file.open("rb") as opened:
            entry = _entry(DATABASE, file.stat().st_size)
            self._tar.addfile(entry, opened)

    def picture(self, sha256: str, content: bytes) -> None:
        self._add(f"pictures/{sha256}", content)

    def _add(self, name: str, content: bytes) -> None:
        self._tar.addfile(_entry(name, len(content)), io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(time.time())
    return entry


def unpacked(file: IO[bytes]) -> Iterator[Manifest | Part]:
    """Yield the manifest, then each part once. Raise `Refused` at the first entry that no backup of ours has."""
    seen: set[str] = set()
    for tar, entry in _entries(file):
        if entry.name in seen:
            raise Refused(f"This backup has {_quoted(entry.name)} twice.")
        if not seen and entry.name != MANIFEST:
            raise Refused("This is no backup of Darkroom: it does not begin with a manifest.")
        seen.add(entry.name)
        yield _part(tar, entry)
    if not seen:
        raise Refused("This is no backup of Darkroom: it is empty.")


def _entries(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with reading():
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it only wraps `file`, which the caller closes
    while True:
        with reading():
            entry = tar.next()
            if entry is not None and entry.size < 0:
                raise tarfile.ReadError(f"{_quoted(entry.name)} has a negative size")
        if entry is None:
            return
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - else tarfile keeps every entry in memory
        yield tar, entry


@contextmanager
def reading() -> Iterator[None]:
    """Turn every error of `tarfile` into `Refused`: it trusts the numbers in a file, and fails in many ways at wrong
    ones.
    """
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise Refused(f"This backup cannot be read: {error}.") from error
    except OSError as error:
        raise Refused(f"This backup cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise Refused("This backup cannot be read: its description of its files is wrong.") from error


def _part(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Manifest | Part:
    found = PICTURE.fullmatch(entry.name)
    if not entry.isreg() or entry.issparse() or not (found or entry.name in (MANIFEST, DATABASE)):
        raise Refused(f"This is no backup of Darkroom: {_quoted(entry.name)} has no place in one.")
    content = tar.extractfile(entry)
    assert content is not None, "a regular file"
    if entry.name == MANIFEST:
        with reading():
            said = content.read(MOST["manifest"] + 1)
        return _manifest(said)
    if found and entry.size > MOST["picture"]:
        raise Refused(f"This is no backup of Darkroom: {_quoted(entry.name)} is too large for a picture.")
    return Part(found[1] if found else DATABASE, entry.size, content)


def _manifest(content: bytes) -> Manifest:
    try:
        found = json.loads(content)
        manifest = Manifest(
            float(found["made"]), str(found["database"]), int(found["pictures"]), int(found["format"])
        )  # fmt: skip
        if not math.isfinite(manifest.made):
            raise ValueError("not a time")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Refused("This is no backup of Darkroom: its manifest cannot be read.") from error
    if manifest.format != FORMAT:
        raise Refused("This backup is of a later version of Darkroom: restore it with that one.")
    return manifest


def digest(file: Path) -> str:
    """Return the SHA-256 of a file of any size."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def spill(part: Part, target: Path) -> None:
    """Write a part to a new file that only its owner can read. Raise `Refused` if the backup ends too early."""
    left = part.size
    with target.open("xb") as made:
        target.chmod(0o600)
        while left:
            with reading():
                piece = part.content.read(min(CHUNK, left))
            if not piece:
                raise Refused("This backup cannot be read: it ends too early.")
            made.write(piece)
            left -= len(piece)
        made.flush()
        os.fsync(made.fileno())


def _quoted(name: str) -> str:
    return f"“{''.join(sign if sign.isprintable() else '?' for sign in name[:80])}”"
