"""A cache of composed grids: a page and its visitors request the same ones again and again.

It bounds how many are composed at once and how much is kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

from bot.images import grid

AT_ONCE = 2  # each takes a core, and tens of megabytes of pixels
MOST = 48
MOST_BYTES = 64 * 1024 * 1024


class Grids:
    """An LRU cache of grids. A key names what a grid is made of, so an entry never changes."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._making: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = (
            WeakValueDictionary()
        )  # an entry lives while a request waits
        self._kept: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._bytes = 0

    async def of(self, key: tuple[str, ...], pictures: Callable[[], Awaitable[Sequence[bytes]]]) -> bytes:
        """Return the grid of `key`; compose it from `pictures()`, which is called only on a miss."""
        if (kept := self._look(key)) is not None:
            return kept
        one_at_a_time = self._making.setdefault(key, asyncio.Lock())
        async with one_at_a_time, self._turns:
            if (kept := self._look(key)) is not None:  # composed while we waited
                return kept
            made = await asyncio.to_thread(grid.compose, await pictures(), self._cell)
            self._keep(key, made)
            return made

    def _look(self, key: tuple[str, ...]) -> bytes | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: tuple[str, ...], made: bytes) -> None:
        self._bytes += len(made) - len(self._kept.get(key, b""))
        self._kept[key] = made
        while len(self._kept) > MOST or self._bytes > MOST_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])
