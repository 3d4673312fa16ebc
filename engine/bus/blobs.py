"""Blob store: input and output bytes in an object bucket, each object named by its SHA-256.

Every write and every read checks the name against the bytes. The layout resembles that of the client library's object
store, which we do not use. It would need the rights to purge and to read the whole stream, and every writer could purge
by a header. A worker key grants none of this: a worker only writes, and reads blobs whose name it knows. Each chunk has
its own subject, on which the stream keeps only the newest message.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
from cachetools import LRUCache
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from engine.bus import subjects

CHUNK_BYTES = 1024 * 1024
SMALL_BYTES = 128 * 1024  # bytes
MAX_REMEMBERED = 1024  # blobs that were read and perhaps will be dropped
MAX_CHUNKS = 1024  # removed one by one: 1 GiB; an untrusted entry may claim any number


class BlobMissing(LookupError):
    """The blob is missing, too large, or its bytes do not match its name."""


class BlobEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An object's metadata as its bucket stores it (NATS ADR-20). `chunk_id` names the subjects of its chunks."""

    name: str
    bucket: str
    chunk_id: str = msgspec.field(name="nuid")
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


class BlobStore:
    """The blob bucket. `max_age`: time to live in seconds. `has_worker_key`: our key may not purge it."""

    def __init__(self, js: JetStreamContext, max_age: float, *, has_worker_key: bool = False) -> None:
        self._js = js
        self._has_worker_key = has_worker_key
        self._reuse_age = timedelta(seconds=max_age / 2)
        self._read_numbers: LRUCache[str, list[int]] = LRUCache(MAX_REMEMBERED)  # SHA-256 → its messages in the stream

    async def put(self, content: bytes) -> str:
        """Store the bytes and return their SHA-256; reuse a copy younger than half of `max_age`."""
        sha_bytes = await _hash_content(content)
        sha = sha_bytes.hex()
        old_entry = await self._read_entry(sha)
        if old_entry is not None and self._is_fresh(old_entry):
            return sha
        chunk_id = secrets.token_hex(16)
        chunks = range(0, len(content), CHUNK_BYTES)
        for number, start in enumerate(chunks):
            await self._js.publish(subjects.blob_chunk(chunk_id, number), content[start : start + CHUNK_BYTES])
        digest = f"SHA-256={base64.urlsafe_b64encode(sha_bytes).decode()}"
        written = datetime.now(UTC).isoformat()
        await self._write_entry(BlobEntry(sha, subjects.BLOBS, chunk_id, len(content), written, len(chunks), digest))
        if old_entry is not None:
            await self._remove_chunks(old_entry)
        return sha

    def _is_fresh(self, entry: BlobEntry) -> bool:
        try:
            return datetime.now(UTC) - datetime.fromisoformat(entry.mtime) < self._reuse_age
        except (ValueError, TypeError):
            return False

    async def _read_entry(self, sha: str) -> BlobEntry | None:
        """Return the blob's entry; None where there is none or it is unreadable."""
        return (await self._find_entry(sha))[0]

    async def _find_entry(self, sha: str) -> tuple[BlobEntry | None, int]:
        """Return the blob's entry as `_read_entry` does, and its message's number in the stream."""
        try:
            msg = await self._js.get_msg(subjects.BLOBS_STREAM, subject=subjects.blob_entry(sha), direct=True)
            entry = msgspec.json.decode(msg.data or b"", type=BlobEntry)
        except (NotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None, 0
        return (None if entry.deleted or not _is_token(entry.chunk_id) else entry), msg.seq or 0

    async def _write_entry(self, entry: BlobEntry) -> None:
        await self._js.publish(subjects.blob_entry(entry.name), msgspec.json.encode(entry))

    async def _remove_chunks(self, entry: BlobEntry) -> None:
        """Remove the chunks. The broker overwrites their bytes in its file, as it does not for a purge.

        A client that may not erase replaces them with empty ones.
        """
        for number in range(min(entry.chunks, MAX_CHUNKS)):
            subject = subjects.blob_chunk(entry.chunk_id, number)
            if self._has_worker_key:
                await self._js.publish(subject, b"")
                continue
            with suppress(NotFoundError):
                msg = await self._js.get_msg(subjects.BLOBS_STREAM, subject=subject, direct=True)
                await self._erase_message(msg.seq or 0)

    async def _erase_message(self, number: int) -> None:
        """Remove one message and overwrite its bytes; one that is gone is fine."""
        with suppress(APIError):
            await self._js.delete_msg(subjects.BLOBS_STREAM, number)

    async def get(self, sha: str, limit: int) -> bytes:
        """Return the bytes. Raises `BlobMissing`, also for more than `limit` bytes."""
        entry, number = await self._find_entry(sha)
        if entry is None:
            raise BlobMissing(f"There is no blob {sha[:12]}.")
        if not 0 <= entry.size <= limit:
            raise BlobMissing(f"Blob {sha[:12]} is larger than {limit} bytes.")
        try:
            content, chunk_numbers = await self._read_chunks(subjects.blob_chunk(entry.chunk_id, ">"), entry.size)
        except NotFoundError as error:
            raise BlobMissing(f"There is no blob {sha[:12]}.") from error
        if (await _hash_content(content)).hex() != sha:
            raise BlobMissing(f"Blob {sha[:12]} is damaged.")
        self._read_numbers[sha] = [number, *chunk_numbers]
        return content

    async def _read_chunks(self, subject: str, size: int) -> tuple[bytes, list[int]]:
        """Read chunk after chunk by direct requests: no consumer, and no waiting for a missing chunk.

        Return the bytes, and the chunks' numbers in the stream.
        """
        content = bytearray()
        numbers = [0]
        while len(content) < size:
            position = numbers[-1] + 1
            msg = await self._js.get_msg(subjects.BLOBS_STREAM, seq=position, subject=subject, direct=True, next=True)
            if not msg.data:
                break
            content += msg.data
            numbers.append(msg.seq or 0)
        return bytes(content), numbers[1:]

    async def drop_read(self, sha: str) -> None:
        """Remove the copy that `get` returned last; one that was stored since then stays. Not with a worker's key.

        A blob of which `get` remembers nothing is removed as it is.
        """
        numbers = self._read_numbers.pop(sha, None)
        if numbers is None:
            await self.drop(sha)
            return
        for number in numbers:
            await self._erase_message(number)

    def forget_reads(self) -> None:
        """Forget which copies were read: a new stream counts its messages from 1 again."""
        self._read_numbers.clear()

    async def drop(self, sha: str) -> None:
        """Remove a blob that is no longer needed; a missing one is fine."""
        entry, number = await self._find_entry(sha)
        if entry is None:
            return
        if self._has_worker_key:
            await self._write_entry(BlobEntry(sha, subjects.BLOBS, entry.chunk_id, deleted=True))
        else:
            await self._erase_message(number)
        await self._remove_chunks(entry)


def _is_token(chunk_id: str) -> bool:
    """Whether `chunk_id`, which comes from outside, is one subject token."""
    return chunk_id.isascii() and chunk_id.isalnum()


async def _hash_content(content: bytes) -> bytes:
    """Return the SHA-256. Small content is hashed on the loop: a thread costs more than the hash."""
    if len(content) <= SMALL_BYTES:
        return hashlib.sha256(content).digest()
    return await asyncio.to_thread(lambda: hashlib.sha256(content).digest())
