"""Inputs and outputs as blobs: an object bucket, every object named by its SHA-256.

Knows storing and fetching bytes; nothing of what they are. The name is checked against the bytes on the way in and out.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta

from nats.js import JetStreamContext, api
from nats.js.errors import BadObjectMetaError, NotFoundError
from nats.js.object_store import ObjectStore

from engine.bus import subjects

CHUNK = 1024 * 1024
SMALL = 128 * 1024  # bytes


class NoBlob(LookupError):
    """There is no such blob, or it is too large, or its bytes are not what its name says."""


class Blobs:
    """The blob bucket; `max_age` is its time to live in seconds."""

    def __init__(self, js: JetStreamContext, max_age: float) -> None:
        self._js = js
        self._store = ObjectStore(subjects.BLOBS, subjects.BLOBS_STREAM, js)
        self._fresh = timedelta(seconds=max_age / 2)

    async def put(self, content: bytes) -> str:
        """Stores the bytes, unless a young copy is there already; their SHA-256."""
        sha = await _sha256(content)
        if not await self._young(sha):
            meta = api.ObjectMeta(name=sha, options=api.ObjectMetaOptions(max_chunk_size=CHUNK))
            await self._store.put(sha, content, meta)
        return sha

    async def _young(self, sha: str) -> bool:
        try:
            info = await self._store.get_info(sha)
            return datetime.now(UTC) - datetime.fromisoformat(info.mtime or "") < self._fresh
        except (NotFoundError, BadObjectMetaError, ValueError, TypeError):
            return False

    async def get(self, sha: str, limit: int) -> bytes:
        """The bytes. Raises `NoBlob`, also when there are more than `limit` of them."""
        try:
            info = await self._store.get_info(sha)
            if not info.nuid or not 0 <= (info.size or 0) <= limit:
                raise NoBlob(f"Blob {sha[:12]} is larger than {limit} bytes.")
            content = await self._chunks(f"$O.{subjects.BLOBS}.C.{info.nuid}", info.size or 0)
        except (NotFoundError, BadObjectMetaError) as error:
            raise NoBlob(f"There is no blob {sha[:12]}.") from error
        if await _sha256(content) != sha:
            raise NoBlob(f"Blob {sha[:12]} is damaged.")
        return content

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
        try:
            await self._store.delete(sha)
        except NotFoundError:
            return


async def _sha256(content: bytes) -> str:
    """Of a small one at once: a thread costs more than the sum."""
    if len(content) <= SMALL:
        return hashlib.sha256(content).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
