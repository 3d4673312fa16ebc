"""The picture store: finished pictures and ladders by SHA-256, in a folder, or in S3 and the like by obstore."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

WRITERS = 8  # threads that wait for the disk
SMALL = 128 * 1024  # bytes that are hashed without a thread
LISTED = 500  # names at a time
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Missing(KeyError):
    """Nothing is stored under that SHA-256."""


class Spoiled(Missing):
    """The bytes do not match their SHA-256, as after a torn write. This counts as missing."""


class Pictures:
    """Content-addressed, write-once. Bytes with the SHA-256 abcd… lie under `sha256/ab/cd/abcd…`.

    Every method raises OSError while the store cannot be used: a full disk, an unreachable bucket.
    """

    def __init__(self, place: str | Path) -> None:
        """`place`: a folder (made if missing), or an address: s3://bucket/prefix, gs://, az://, file://."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # kept while a lock is in use
        self._writing = ThreadPoolExecutor(WRITERS, "pictures")  # a slow disk blocks only its own callers
        self._folder: Path | None = None
        self._lasting: set[Path] = set()  # upper folders whose names are synced to the disk; at most 256
        self._store: ObjectStore
        if isinstance(place, str) and "://" in place and not place.startswith("file://"):
            self._store = from_url(place)
            return
        self._folder = Path(str(place).removeprefix("file://")).absolute()
        self._store = LocalStore(self._folder, mkdir=True)

    def turn(self, sha256: str) -> asyncio.Lock:
        """Return a content's lock: held while it is stored and recorded, or found unused and deleted."""
        return self._turns.setdefault(sha256, asyncio.Lock())

    async def put(self, payload: bytes) -> str:
        """Store `payload` and return its SHA-256. All or nothing, and on the disk when this returns."""
        sha256 = await _digest(payload)
        await self.put_all({sha256: payload})
        return sha256

    async def put_all(self, payloads: Mapping[str, bytes]) -> None:
        """Store each under its SHA-256, which the caller has checked. All are on the disk when this returns."""
        if self._folder is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writing, self._put_files, self._folder, payloads)
            return
        puts = [obstore.put_async(self._store, _path(sha256), payload) for sha256, payload in payloads.items()]
        with _using():  # all of them end before one's error is raised: nothing is written later
            for result in await asyncio.gather(*puts, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

    def _put_files(self, folder: Path, payloads: Mapping[str, bytes]) -> None:
        """Write and fsync the files. S3 answers once data is safe; a file is only in the page cache.

        One thread for all: a hop costs more. All are written before the first fsync, which takes the other files'
        folders to the disk with it.
        """
        paths = {_path(sha256): payload for sha256, payload in payloads.items()}
        with _using():
            for path, payload in paths.items():
                obstore.put(self._store, path, payload)
        for path in paths:
            self._settle(folder / path)

    async def get(self, sha256: str) -> bytes:
        """Return the bytes, checked against their name. Raises `Missing`, or `Spoiled` if the check fails."""
        if not _SHA256.fullmatch(sha256):
            raise Missing(sha256)
        try:
            with _using():
                found = await obstore.get_async(self._store, _path(sha256))
                payload = bytes(await found.bytes_async())
        except FileNotFoundError as error:
            raise Missing(sha256) from error
        if await _digest(payload) != sha256:
            raise Spoiled(sha256)
        return payload

    async def has(self, sha256: str) -> bool:
        """Return whether something is stored under that SHA-256, unchecked."""
        if not _SHA256.fullmatch(sha256):
            return False
        try:
            with _using():
                await obstore.head_async(self._store, _path(sha256))
        except FileNotFoundError:
            return False
        return True

    async def drop(self, sha256: str) -> None:
        """Delete the bytes; do nothing if there are none."""
        if await self.has(sha256):
            with _using():
                await obstore.delete_async(self._store, _path(sha256))

    async def names(self, before: float) -> AsyncIterator[list[str]]:
        """Yield the names of all that was stored before `before`, in seconds since 1970; some hundreds at a time."""
        with _using():
            async for found in obstore.list(self._store, "sha256", chunk_size=LISTED):
                names = (one["path"].rpartition("/")[2] for one in found if one["last_modified"].timestamp() < before)
                yield [name for name in names if _SHA256.fullmatch(name)]

    def _settle(self, path: Path) -> None:
        """Call fsync on the file and on the folders that name it: a power cut after `put` loses nothing.

        Upper folders need that once; a lower one may be new.
        """
        lower, upper, top, root = list(path.parents)[:4]
        above = () if upper in self._lasting else (top, root)
        for part in (path, lower, upper, *above):
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._lasting.add(upper)


@contextmanager
def _using() -> Iterator[None]:
    """Translate obstore's errors to OSError. FileNotFoundError passes unchanged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        raise OSError(f"The picture store cannot be used now: {str(error).partition(chr(10))[0]}") from error


def _path(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


async def _digest(payload: bytes) -> str:
    """Return the SHA-256. A small payload is hashed here: a thread costs more."""
    if len(payload) <= SMALL:
        return hashlib.sha256(payload).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(payload).hexdigest())
