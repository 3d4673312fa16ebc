"""Limit on the memory for uploads of all members together, from their arrival until their job exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from bot.domain.errors import UserError

MAX_BYTES = 384 * 2**20
MAX_WAITING = 64  # requests that wait for memory
BUSY = "Too many pictures are being uploaded just now: try again soon."


class MemoryLimiter:
    """One per bot. A waiting request has downloaded nothing yet; requests are served in order."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_waiting: int = MAX_WAITING) -> None:
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._lock = asyncio.Lock()
        self._released = asyncio.Event()
        self._reserved = self._waiting = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._reserved

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncGenerator[None]:
        """Reserve `size` bytes while the body runs; if that exceeds the limit, wait for all of the memory. Raises
        `UserError`.
        """
        size = min(size, self._max_bytes)
        if self._waiting >= self._max_waiting:
            raise UserError(BUSY, 429)
        self._waiting += 1
        try:
            async with self._lock:
                while self._reserved + size > self._max_bytes:
                    self._released.clear()
                    await self._released.wait()
                self._reserved += size
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._reserved -= size
            self._released.set()
