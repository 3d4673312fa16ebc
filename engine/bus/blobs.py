"""Inputs and outputs as blobs: an object bucket, every object named by its SHA-256.

Knows storing and fetching bytes; nothing of what they are. The name is checked against the bytes on the way in and out.
The bucket is laid out much as the client library's object store, which we do not use: it asks for rights to purge the
whole stream and to read all of it, and for a stream that everybody who may write to it can purge by a header. A worker
with a key of its own has none of that. We only write, and read what we can name; each part of a blob has a subject of
its own, on which the stream keeps the newest message alone.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from datetime import UTC, datetime, timedelta

import msgspec
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from engine.bus import subjects

CHUNK = 1024 * 1024
SMALL = 128 * 1024  # bytes
MOST_CHUNKS = 1024  # that are taken out one by one: a gibibyte, and an entry may say anything


class NoBlob(LookupError):
    """There is no such blob, or it is too large, or its bytes are not what its name says."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An object as its bucket describes it (NATS ADR-20). `nuid` names the subjects of its chunks."""

    name: str
    bucket: str
    nuid: str
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


class Blobs:
    """The blob bucket; `max_age` is its time to live in seconds. `scoped`: we may not purge it."""

    def __init__(self, js: JetStreamContext, max_age: float, *, scoped: bool = False) -> None:
        self._js, self._scoped = js, scoped
        self._fresh = timedelta(seconds=max_age / 2)

    async def put(self, content: bytes) -> str:
        """Stores the bytes, unless a young copy is there already; their SHA-256."""
        sum_ = await _sum(content)
        sha = sum_.hex()
        old = await self._entry(sha)
        if old is not None and self._young(old):
            return sha
        nuid, chunks = secrets.token_hex(16), range(0, len(content), CHUNK)
        for number, start in enumerate(chunks):
            await self._js.publish(subjects.blob_part(nuid, number), content[start : start + CHUNK])
        digest = f"SHA-256={base64.urlsafe_b64encode(sum_).decode()}"
        written = datetime.now(UTC).isoformat()
        await self._write(Entry(sha, subjects.BLOBS, nuid, len(content), written, len(chunks), digest))
        if old is not None:
            await self._empty(old)
        return sha

    def _young(self, entry: Entry) -> bool:
        try:
            return datetime.now(UTC) - datetime.fromisoformat(entry.mtime) < self._fresh
        except (ValueError, TypeError):
            return False

    async def _entry(self, sha: str) -> Entry | None:
        """What the bucket says of it; None where it has none, or what lies there cannot be read."""
        try:
            msg = await self._js.get_msg(subjects.BLOBS_STREAM, subject=subjects.blob(sha), direct=True)
            entry = msgspec.json.decode(msg.data or b"", type=Entry)
        except (NotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return None if entry.deleted or not _is_token(entry.nuid) else entry

    async def _write(self, entry: Entry) -> None:
        await self._js.publish(subjects.blob(entry.name), msgspec.json.encode(entry))

    async def _empty(self, entry: Entry) -> None:
        """Takes the chunks out of the bucket; who may not purge it leaves empty ones."""
        if not self._scoped:
            await self._js.purge_stream(subjects.BLOBS_STREAM, subject=subjects.blob_part(entry.nuid, ">"))
            return
        for number in range(min(entry.chunks, MOST_CHUNKS)):
            await self._js.publish(subjects.blob_part(entry.nuid, number), b"")

    async def get(self, sha: str, limit: int) -> bytes:
        """The bytes. Raises `NoBlob`, also when there are more than `limit` of them."""
        entry = await self._entry(sha)
        if entry is None:
            raise NoBlob(f"There is no blob {sha[:12]}.")
        if not 0 <= entry.size <= limit:
            raise NoBlob(f"Blob {sha[:12]} is larger than {limit} bytes.")
        try:
            content = await self._content(entry)
        except NotFoundError as error:
            raise NoBlob(f"There is no blob {sha[:12]}.") from error
        if (await _sum(content)).hex() != sha:
            raise NoBlob(f"Blob {sha[:12]} is damaged.")
        return content

    async def _content(self, entry: Entry) -> bytes:
        try:
            return await self._chunks(subjects.blob_part(entry.nuid, ">"), entry.size)
        except NotFoundError:
            return await self._chunks(subjects.blob_parts(entry.nuid), entry.size)

    async def _chunks(self, subject: str, size: int) -> bytes:
        """Chunk after chunk by direct requests: no consumer, and no wait for a chunk that is gone."""
        content, position = bytearray(), 1
        while len(content) < size:
            msg = await self._js.get_msg(subjects.BLOBS_STREAM, seq=position, subject=subject, direct=True, next=True)
            if not msg.data:
                break
            content += msg.data
            position = (msg.seq or 0) + 1
        return bytes(content)

    async def drop(self, sha: str) -> None:
        """Removes a blob that nobody needs any more; one that is gone already is fine."""
        entry = await self._entry(sha)
        if entry is not None:
            await self._write(Entry(sha, subjects.BLOBS, entry.nuid, deleted=True))
            await self._empty(entry)


def _is_token(nuid: str) -> bool:
    """Whether it names one subject: it came from outside."""
    return nuid.isascii() and nuid.isalnum()


async def _sum(content: bytes) -> bytes:
    """SHA-256, of a small one at once: a thread costs more than the sum."""
    if len(content) <= SMALL:
        return hashlib.sha256(content).digest()
    return await asyncio.to_thread(lambda: hashlib.sha256(content).digest())
