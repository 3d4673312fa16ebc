"""A cache of composed grids: a page and its visitors request the same ones again and again.

It bounds how many it composes at once and how much it keeps.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

from bot.images import grid

MAX_CONCURRENT = 2  # each takes a core, and tens of megabytes of pixels
MAX_GRIDS = 48
MAX_BYTES = 64 * 1024 * 1024


class GridCache:
    """An LRU cache of grids. A key names the pictures of a grid, so an entry never changes."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._locks: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = (
            WeakValueDictionary()
        )  # an entry lives while a request waits
        self._entries: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._total_bytes = 0

    async def get(self, key: tuple[str, ...], load_pictures: Callable[[], Awaitable[Sequence[bytes]]]) -> bytes:
        """Return the grid of `key`; compose it from `load_pictures()`, which is called only on a miss."""
        if (entry := self._lookup(key)) is not None:
            return entry
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock, self._slots:
            if (entry := self._lookup(key)) is not None:  # another request composed it meanwhile
                return entry
            payload = await asyncio.to_thread(grid.compose, await load_pictures(), self._cell)
            self._store(key, payload)
            return payload

    def _lookup(self, key: tuple[str, ...]) -> bytes | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def _store(self, key: tuple[str, ...], payload: bytes) -> None:
        self._total_bytes += len(payload) - len(self._entries.get(key, b""))
        self._entries[key] = payload
        while len(self._entries) > MAX_GRIDS or self._total_bytes > MAX_BYTES:
            self._total_bytes -= len(self._entries.popitem(last=False)[1])
