"""An async cache: it computes an expensive result once, one at a time, and keeps the last few."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from cachetools import LRUCache

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
