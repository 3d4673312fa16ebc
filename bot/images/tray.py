"""How much of members' pictures is in memory between their arrival and their job: bounded over all members together.

Knows bytes; knows nothing of whose they are or where they come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bot.refused import Refused

MOST_BYTES = 384 * 2**20
LINE = 64  # requests that wait for room
BUSY = "Too many pictures are being brought just now: try again soon."


class Tray:
    """One for a house. What waits for room has fetched nothing yet, and is served in order."""

    def __init__(self, most: int = MOST_BYTES, line: int = LINE) -> None:
        self._most, self._line = most, line
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()
        self._taken = self._waiting = 0

    @property
    def taken(self) -> int:
        """Bytes for which there is room just now, because somebody asked."""
        return self._taken

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """For `size` bytes, as long as the body runs; more than there can be waits for all of it. Raises `Refused`."""
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
