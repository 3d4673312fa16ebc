"""Limit on the memory for uploads of all members together, from their arrival until their job exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bot.refused import Refused

MOST_BYTES = 384 * 2**20
LINE = 64  # requests that wait for memory
BUSY = "Too many pictures are being uploaded just now: try again soon."


class Tray:
    """One per bot. A request that waits has downloaded nothing yet; requests are served in order."""

    def __init__(self, most: int = MOST_BYTES, line: int = LINE) -> None:
        self._most, self._line = most, line
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()
        self._taken = self._waiting = 0

    @property
    def taken(self) -> int:
        """Bytes that are reserved now."""
        return self._taken

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` bytes while the body runs; more than the limit waits for all of it. Raises `Refused`."""
        size = min(size, self._most)
        if self._waiting >= self._line:
            raise Refused(BUSY, 429)
        self._waiting += 1
        try:
            async with self._turn:
                while self._taken + size > self._most:
                    self._freed.clear()
                    await self._freed.wait()
                self._taken += size
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._taken -= size
            self._freed.set()
