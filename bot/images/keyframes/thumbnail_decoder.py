"""Keyframe thumbnails that the engine decodes on demand, with a cache. Stored ladders stay unchanged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

from bot.images.async_cache import AsyncCache
from bot.images.keyframes.decoded_thumbnails import replace_thumbnails
from bot.store import JobRecord, Store, StoredPicture

CACHED_LADDERS = 64  # ladders whose decoded thumbnails stay in memory

Thumbnails = tuple[bytes, ...]  # one per keyframe
DecodeLadder = Callable[[JobRecord, bytes], Awaitable[Thumbnails]]  # decodes a job's ladder; empty if no worker can now
NO_THUMBNAILS: Mapping[str, Thumbnails] = MappingProxyType({})


class _NotDecoded(Exception):
    """No worker can decode this ladder now."""


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
        """Return the decoded thumbnails of one ladder. Raises `_NotDecoded`."""

        async def decode() -> Thumbnails:
            assert self._decode is not None, "`look` returns early without it"
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
