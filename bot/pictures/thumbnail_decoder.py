"""Decodes the previews of a ladder where they are needed, once for all who ask, and keeps the latest.

The engine decodes keyframe thumbnails on demand; they replace those that a linear map made. Stored ladders stay
unchanged. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

from cachetools import LRUCache
from msgspec.structs import replace

from bot.pictures.image_codec import UnreadableImage
from bot.store import JobRecord, Store, StoredPicture
from engine.contract import Ladder, MalformedMessage, decode, encode

CACHED_LADDERS = 64  # ladders whose decoded thumbnails stay in memory

Thumbnails = tuple[bytes, ...]  # one per keyframe
DecodeLadder = Callable[[JobRecord, bytes], Awaitable[Thumbnails]]  # decodes a job's ladder; empty if no worker can now
NO_THUMBNAILS: Mapping[str, Thumbnails] = MappingProxyType({})


class _NotDecoded(Exception): ...


class ThumbnailDecoder:
    """Belongs to the event loop. Without `decode`, every ladder keeps its stored thumbnails."""

    def __init__(
        self, store: Store, read_content: Callable[[StoredPicture], Awaitable[bytes]], decode: DecodeLadder | None
    ) -> None:
        self._store = store
        self._read_content = read_content
        self._decode = decode
        self._cache: AsyncCache[Thumbnails] = AsyncCache(CACHED_LADDERS)

    async def decode_thumbnails(self, job: str, ladders: Sequence[StoredPicture]) -> Mapping[str, Thumbnails]:
        """Return the decoded thumbnails of a job's ladders by SHA-256: of all of them, or of none."""
        record = await self._store.get_job(job) if self._decode else None
        if record is None:
            return NO_THUMBNAILS
        try:
            return {ladder.sha256: await self._thumbnails(record, ladder) for ladder in ladders}
        except _NotDecoded:
            return NO_THUMBNAILS

    async def _thumbnails(self, record: JobRecord, ladder: StoredPicture) -> Thumbnails:
        async def decode() -> Thumbnails:
            assert self._decode is not None, "`decode_thumbnails` returns early without it"
            if thumbnails := await self._decode(record, await self._read_content(ladder)):
                return thumbnails
            raise _NotDecoded

        return await self._cache.get_or_make((ladder.sha256,), decode)


def apply_thumbnails(
    parts: Sequence[StoredPicture], contents: Sequence[bytes], thumbnails: Mapping[str, Thumbnails]
) -> list[bytes]:
    """Return the parts' contents, with these thumbnails in the ladders. Raises `UnreadableImage`."""
    return [
        replace_thumbnails(content, thumbnails[part.sha256]) if part.sha256 in thumbnails else content
        for part, content in zip(parts, contents, strict=True)
    ]


def read_estimates(ladder: bytes) -> tuple[bytes, ...]:
    """Return the estimate of each keyframe; empty if one has none, or if the bytes are no ladder."""
    try:
        keyframes = decode(ladder, Ladder).keyframes
    except MalformedMessage:
        return ()
    images = tuple(keyframe.estimate for keyframe in keyframes if keyframe.estimate)
    return images if len(images) == len(keyframes) else ()


def replace_thumbnails(ladder: bytes, thumbnails: Sequence[bytes]) -> bytes:
    """Return the ladder with these thumbnails, one per keyframe in order; stores nothing. Raises `UnreadableImage`."""
    try:
        decoded = decode(ladder, Ladder)
    except MalformedMessage as error:
        raise UnreadableImage(f"not a ladder: {error}") from error
    keyframes = (
        replace(keyframe, thumbnail=thumbnail)
        for keyframe, thumbnail in zip(decoded.keyframes, thumbnails, strict=True)
    )
    return encode(replace(decoded, keyframes=tuple(keyframes)))


T = TypeVar("T")


class AsyncCache(Generic[T]):
    """Keeps at most `max_results` results. A key names everything on which its result depends."""

    def __init__(self, max_results: int) -> None:
        self._results: LRUCache[tuple[str, ...], T] = LRUCache(max_results)
        self._lock = asyncio.Lock()

    async def get_or_make(self, key: tuple[str, ...], make: Callable[[], Awaitable[T]]) -> T:
        """Return the result of that key; call `make` if it is not cached. Only a new result waits for others."""
        if key not in self._results:
            async with self._lock:
                if key not in self._results:
                    self._results[key] = await make()
        return self._results[key]
