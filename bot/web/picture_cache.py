"""Caches of pictures made of finished ones: a page and its visitors request the same ones again and again.

They bound how many are made at once and how much is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from weakref import WeakValueDictionary

from cachetools import LRUCache

from bot.domain.concurrency import run_in_thread
from bot.pictures import grid

MAX_CONCURRENT = 2  # each takes a core, and tens of megabytes of pixels
MAX_PICTURES = 48
MAX_BYTES = 64 * 1024 * 1024


class EncodedPictureCache:
    """An LRU cache. A key names a picture's sources and form, so an entry never changes."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._locks: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = (
            WeakValueDictionary()
        )  # an entry lives while a request waits
        self._entries: LRUCache[tuple[str, ...], bytes] = LRUCache(MAX_BYTES, getsizeof=len)

    async def get(self, key: tuple[str, ...], make: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the picture of `key`; `make()` is called only on a miss."""
        if (entry := self._entries.get(key)) is not None:
            return entry
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock, self._slots:
            if (entry := self._entries.get(key)) is not None:  # another request made it meanwhile
                return entry
            payload = await make()
            self._store(key, payload)
            return payload

    def _store(self, key: tuple[str, ...], payload: bytes) -> None:
        if len(payload) <= MAX_BYTES:
            self._entries[key] = payload
        if len(self._entries) > MAX_PICTURES:
            self._entries.popitem()


class GridCache:
    """A cache of composed grids."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._cache = EncodedPictureCache()

    async def get(self, key: tuple[str, ...], load_pictures: Callable[[], Awaitable[Sequence[bytes]]]) -> bytes:
        """Return the grid of `key`; compose it from `load_pictures()`, which is called only on a miss."""

        async def compose() -> bytes:
            return await run_in_thread(partial(grid.compose, await load_pictures(), self._cell))

        return await self._cache.get(key, compose)
