"""Finished pictures and ladders by their content: a folder on this machine, or S3 and its like, by obstore.

Knows bytes and their SHA-256; knows nothing of jobs, formats or who may see what.
"""

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
SMALL = 128 * 1024  # bytes
LISTED = 500  # at a time
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Missing(KeyError):
    """Nothing is kept under that SHA-256."""


class Spoiled(Missing):
    """What is kept under that SHA-256 is something else now, as after a torn write: as good as missing."""


class Pictures:
    """Content-addressed, write-once. Bytes with the SHA-256 abcd… lie under `sha256/ab/cd/abcd…`.

    Every method raises OSError while the store cannot be used: a full disk, a bucket that is away.
    """

    def __init__(self, place: str | Path) -> None:
        """`place`: a folder (made where it is missing), or an address: s3://bucket/prefix, gs://, az://, file://."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # while anybody holds one
        self._writing = ThreadPoolExecutor(WRITERS, "pictures")  # a slow disk holds up nothing but what waits for it
        self._folder: Path | None = None
        self._lasting: set[Path] = set()  # upper folders whose own names are on the disk; at most 256
        self._store: ObjectStore
        if isinstance(place, str) and "://" in place and not place.startswith("file://"):
            self._store = from_url(place)
            return
        self._folder = Path(str(place).removeprefix("file://")).absolute()
        self._store = LocalStore(self._folder, mkdir=True)

    def turn(self, sha256: str) -> asyncio.Lock:
        """Held by who keeps a content and notes it, and by who looks whether it is noted and drops it: in turn."""
        return self._turns.setdefault(sha256, asyncio.Lock())

    async def put(self, payload: bytes) -> str:
        """Keeps `payload` and returns its SHA-256. Whole or not at all, and on the disk when this returns."""
        sha256 = await _digest(payload)
        await self.put_all({sha256: payload})
        return sha256

    async def put_all(self, payloads: Mapping[str, bytes]) -> None:
        """Keeps each under its SHA-256, which its caller has checked; all are on the disk when this returns."""
        if self._folder is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writing, self._put_files, self._folder, payloads)
            return
        puts = [obstore.put_async(self._store, _path(sha256), payload) for sha256, payload in payloads.items()]
        with _using():  # all of them end before one's error is raised: nothing comes in behind it
            for result in await asyncio.gather(*puts, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

    def _put_files(self, folder: Path, payloads: Mapping[str, bytes]) -> None:
        """S3 answers once it is safe; a file is only in the page cache. One thread for all: a hop costs more.

        All are written before the first is synced: that takes the others' folders to the disk with it.
        """
        paths = {_path(sha256): payload for sha256, payload in payloads.items()}
        with _using():
            for path, payload in paths.items():
                obstore.put(self._store, path, payload)
        for path in paths:
            self._settle(folder / path)

    async def get(self, sha256: str) -> bytes:
        """The bytes, checked against their name. Raises `Missing`, or `Spoiled` where the check fails."""
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
        """Whether something is kept under that SHA-256, unchecked."""
        if not _SHA256.fullmatch(sha256):
            return False
        try:
            with _using():
                await obstore.head_async(self._store, _path(sha256))
        except FileNotFoundError:
            return False
        return True

    async def drop(self, sha256: str) -> None:
        """Forgets the bytes; nothing happens where there are none."""
        if await self.has(sha256):
            with _using():
                await obstore.delete_async(self._store, _path(sha256))

    async def names(self, before: float) -> AsyncIterator[list[str]]:
        """Everything that was put earlier than `before`, in seconds since 1970; some hundreds at a time."""
        with _using():
            async for found in obstore.list(self._store, "sha256", chunk_size=LISTED):
                names = (one["path"].rpartition("/")[2] for one in found if one["last_modified"].timestamp() < before)
                yield [name for name in names if _SHA256.fullmatch(name)]

    def _settle(self, path: Path) -> None:
        """fsync of the file and of the folders that name it: a power cut after `put` loses nothing.

        The upper folders are there for good after the first time; a lower one may have been made just now.
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
    """obstore's errors are not OSErrors, but mean the same: not now. That nothing is there passes as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        raise OSError(f"The picture store cannot be used now: {str(error).partition(chr(10))[0]}") from error


def _path(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


async def _digest(payload: bytes) -> str:
    """Of a small one at once: a thread costs more than the sum."""
    if len(payload) <= SMALL:
        return hashlib.sha256(payload).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(payload).hexdigest())
