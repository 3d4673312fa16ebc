"""Keyframe thumbnails that the engine decodes on demand, with a cache. Stored ladders stay unchanged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

from bot.images.estimates import with_thumbnails
from bot.images.made import Made
from bot.store import Record, Store, Stored

KEPT = 64  # ladders whose decoded thumbnails stay in memory

Thumbnails = tuple[bytes, ...]  # one per keyframe
Decode = Callable[[Record, bytes], Awaitable[Thumbnails]]  # decodes a job's ladder; empty if no worker can now
BY_MAP: Mapping[str, Thumbnails] = MappingProxyType({})


class _NotDecoded(Exception):
    """No worker can decode this ladder now."""


class Closely:
    """Belongs to the event loop. Without `decode`, every ladder keeps its stored thumbnails."""

    def __init__(self, store: Store, read: Callable[[Stored], Awaitable[bytes]], decode: Decode | None) -> None:
        self._store, self._read, self._decode = store, read, decode
        self._known: Made[Thumbnails] = Made(KEPT)

    async def look(self, job: str, ladders: Sequence[Stored]) -> Mapping[str, Thumbnails]:
        """Return the decoded thumbnails of a job's ladders by SHA-256: of all of them, or of none."""
        record = await self._store.record(job) if self._decode else None
        if record is None:
            return BY_MAP
        try:
            return {one.sha256: await self._thumbnails(record, one) for one in ladders}
        except _NotDecoded:
            return BY_MAP

    async def _thumbnails(self, record: Record, ladder: Stored) -> Thumbnails:
        """Return the decoded thumbnails of one ladder. Raises `_NotDecoded`."""

        async def make() -> Thumbnails:
            assert self._decode is not None, "`look` returns early without it"
            if made := await self._decode(record, await self._read(ladder)):
                return made
            raise _NotDecoded

        return await self._known.of((ladder.sha256,), make)


def seen_closely(parts: Sequence[Stored], contents: Sequence[bytes], seen: Mapping[str, Thumbnails]) -> list[bytes]:
    """Return the parts' contents, with these thumbnails in the ladders. Raises `Unreadable`."""
    return [
        with_thumbnails(content, seen[one.sha256]) if one.sha256 in seen else content
        for one, content in zip(parts, contents, strict=True)
    ]
