"""The picture store: finished pictures and ladders by SHA-256, in a folder or an object store such as S3."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Generator, Mapping
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

WRITER_THREADS = 8  # threads that wait for the disk
INLINE_HASH_BYTES = 128 * 1024  # bytes that are hashed without a thread
NAMES_PER_PAGE = 500  # names at a time
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ContentMissing(KeyError):
    """Nothing is stored under that SHA-256."""


class ContentCorrupt(ContentMissing):
    """The bytes do not match their SHA-256, for example after a torn write. This counts as missing."""


class PictureStore:
    """Content-addressed, write-once. Bytes with the SHA-256 abcd… lie under `sha256/ab/cd/abcd…`.

    Every method raises OSError while the store cannot be used: a full disk, an unreachable bucket.
    """

    def __init__(self, location: str | Path) -> None:
        """`location`: a folder (made if missing), or an address: s3://bucket/prefix, gs://, az://, file://."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # kept while a lock is in use
        self._write_threads = ThreadPoolExecutor(WRITER_THREADS, "pictures")  # a slow disk blocks only its own callers
        self._folder: Path | None = None
        self._synced_folders: set[Path] = set()  # upper folders whose names are synced to the disk; at most 256
        self._store: ObjectStore
        if isinstance(location, str) and "://" in location and not location.startswith("file://"):
            self._store = from_url(location)
            return
        self._folder = Path(str(location).removeprefix("file://")).absolute()
        self._store = LocalStore(self._folder, mkdir=True)

    def lock(self, sha256: str) -> asyncio.Lock:
        """Return a content's lock: hold it while you store and record it, or find it unused and delete it."""
        return self._locks.setdefault(sha256, asyncio.Lock())

    async def put(self, payload: bytes) -> str:
        """Store `payload` and return its SHA-256. All or nothing; it is on disk when this returns."""
        sha256 = await _hash(payload)
        await self.put_all({sha256: payload})
        return sha256

    async def put_all(self, payloads: Mapping[str, bytes]) -> None:
        """Store each under its SHA-256, which the caller has checked. All are on disk when this returns."""
        if self._folder is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._write_threads, self._put_files, self._folder, payloads)
            return
        puts = [obstore.put_async(self._store, _object_path(sha256), payload) for sha256, payload in payloads.items()]
        with _translate_errors():  # all of them end before an error is raised: nothing is written later
            for result in await asyncio.gather(*puts, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

    def _put_files(self, folder: Path, payloads: Mapping[str, bytes]) -> None:
        """Write and fsync the files. S3 answers once data is safe; a file is only in the page cache.

        One thread writes all: a hop between threads costs more. It writes all before the first fsync, which also syncs
        the other files' folders.
        """
        paths = {_object_path(sha256): payload for sha256, payload in payloads.items()}
        with _translate_errors():
            for path, payload in paths.items():
                obstore.put(self._store, path, payload)
        for path in paths:
            self._sync(folder / path)

    async def get(self, sha256: str) -> bytes:
        """Return the bytes. Raises `ContentMissing`, or `ContentCorrupt` if they do not match their name."""
        if not _SHA256.fullmatch(sha256):
            raise ContentMissing(sha256)
        try:
            with _translate_errors():
                result = await obstore.get_async(self._store, _object_path(sha256))
                payload = bytes(await result.bytes_async())
        except FileNotFoundError as error:
            raise ContentMissing(sha256) from error
        if await _hash(payload) != sha256:
            raise ContentCorrupt(sha256)
        return payload

    async def has(self, sha256: str) -> bool:
        """Return whether something is stored under that SHA-256, unchecked."""
        if not _SHA256.fullmatch(sha256):
            return False
        try:
            with _translate_errors():
                await obstore.head_async(self._store, _object_path(sha256))
        except FileNotFoundError:
            return False
        return True

    async def delete(self, sha256: str) -> None:
        """Delete the bytes; do nothing if there are none."""
        if await self.has(sha256):
            with _translate_errors():
                await obstore.delete_async(self._store, _object_path(sha256))

    async def list_names(self, stored_before: float) -> AsyncIterator[list[str]]:
        """Yield the names of everything stored before `stored_before` (seconds since 1970), some hundreds at a time."""
        with _translate_errors():
            async for page in obstore.list(self._store, "sha256", chunk_size=NAMES_PER_PAGE):
                page_names = (
                    entry["path"].rpartition("/")[2]
                    for entry in page
                    if entry["last_modified"].timestamp() < stored_before
                )
                yield [name for name in page_names if _SHA256.fullmatch(name)]

    def _sync(self, path: Path) -> None:
        """Call fsync on the file and on the folders that name it: a power cut after `put` loses nothing.

        Upper folders need that once; the lowest one may be new.
        """
        lower, upper, top, root = list(path.parents)[:4]
        upper_folders = () if upper in self._synced_folders else (top, root)
        for target in (path, lower, upper, *upper_folders):
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._synced_folders.add(upper)


@contextmanager
def _translate_errors() -> Generator[None]:
    """Translate obstore's errors to OSError. FileNotFoundError passes unchanged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        raise OSError(f"The picture store cannot be used now: {str(error).partition(chr(10))[0]}") from error


def _object_path(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


async def _hash(payload: bytes) -> str:
    """Return the SHA-256. A small payload is hashed here: a thread costs more."""
    if len(payload) <= INLINE_HASH_BYTES:
        return hashlib.sha256(payload).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(payload).hexdigest())
