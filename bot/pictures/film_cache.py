"""Rendered films on disk, so that a film is rendered once. A bounded folder: the films used longest ago go first.

A file begins with one line of JSON, the SHA-256 of every picture that the film shows: when one of these is deleted, the
film is deleted, too. Anything unreadable counts as missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar, TypeVarTuple

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024 * 1024
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

VERSION = "1"  # raise it when the same pictures give another film
FILMS = "films"  # the folder in the data folder
SUFFIX = ".film"
MAX_HEADER_BYTES = 64 * 1024


class _Entry(NamedTuple):
    size: int
    used_at: float
    parts: frozenset[str]


class FilmCache:
    """One thread does all work on the files. Errors of the disk are logged, and cost a rendering."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, "films")
        self._entries: dict[str, _Entry] | None = None  # by file name; read at the first use

    async def get(self, key: Sequence[str]) -> bytes | None:
        """Return the film of that key, or None."""
        return await self._run(self._read_kept, _file_name(key))

    async def put(self, key: Sequence[str], parts: Iterable[str], film: bytes) -> None:
        """Keep a film. `parts`: the SHA-256 of every picture in it."""
        await self._run(self._write_film, _file_name(key), frozenset(parts), film)

    async def forget(self, parts: Iterable[str]) -> None:
        """Delete every film that shows one of these pictures, by SHA-256."""
        await self._run(self._delete_films_of, frozenset(parts))

    async def _run(self, function: Callable[[*Ts], T], *args: *Ts) -> T | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        except OSError as error:
            log.warning("the cache of films: %s", error)
            return None

    def _read_kept(self, name: str) -> bytes | None:
        entries = self._load_entries()
        if name not in entries:
            return None
        content = _read_film(self._folder / name)
        if content is None:
            self._delete(name)
            return None
        entries[name] = entries[name]._replace(used_at=time.time())
        with suppress(OSError):
            os.utime(self._folder / name)
        return content

    def _write_film(self, name: str, parts: frozenset[str], film: bytes) -> None:
        entries = self._load_entries()
        header = json.dumps({"parts": sorted(parts), "sha256": hashlib.sha256(film).hexdigest()}).encode() + b"\n"
        size = len(header) + len(film)
        if size > self._max_bytes:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".draft", delete=False) as draft:
            try:
                draft.write(header + film)
                draft.close()
                Path(draft.name).replace(self._folder / name)
            except OSError:
                Path(draft.name).unlink(missing_ok=True)
                raise
        entries[name] = _Entry(size, time.time(), parts)
        self._shrink(entries)

    def _shrink(self, entries: dict[str, _Entry]) -> None:
        excess = sum(entry.size for entry in entries.values()) - self._max_bytes
        for name, entry in sorted(entries.items(), key=lambda item: item[1].used_at):
            if excess <= 0:
                return
            self._delete(name)
            excess -= entry.size

    def _delete_films_of(self, parts: frozenset[str]) -> None:
        for name in [name for name, entry in self._load_entries().items() if entry.parts & parts]:
            self._delete(name)

    def _delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
        self._load_entries().pop(name, None)

    def _load_entries(self) -> dict[str, _Entry]:
        if self._entries is None:
            self._entries = {}
            for path in self._folder.glob("*"):
                parts = _read_parts(path) if path.suffix == SUFFIX else None
                if parts is None:  # a draft of a process that was killed, or a damaged file
                    path.unlink(missing_ok=True)
                    continue
                status = path.stat()
                self._entries[path.name] = _Entry(status.st_size, status.st_mtime, parts)
        return self._entries


def _file_name(key: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest() + SUFFIX


def _read_parts(path: Path) -> frozenset[str] | None:
    """Return the SHA-256 of the pictures in a film, from its header; None if that is damaged."""
    try:
        with path.open("rb") as file:
            return frozenset(json.loads(file.readline(MAX_HEADER_BYTES))["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_film(path: Path) -> bytes | None:
    try:
        header, _, film = path.read_bytes().partition(b"\n")
        return film if json.loads(header)["sha256"] == hashlib.sha256(film).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
