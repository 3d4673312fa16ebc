"""An async cache: an expensive result is made once, one at a time, and the last few are kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Made(Generic[T]):
    """Keeps at most `most` results. A key names all that its result depends on."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, ...], T] = OrderedDict()
        self._turn = asyncio.Lock()

    async def of(self, key: tuple[str, ...], make: Callable[[], Awaitable[T]]) -> T:
        """Return the result of that key, made by `make` if it is not cached. Only a new result waits for others."""
        if key not in self._known:
            async with self._turn:
                if key not in self._known:
                    self._known[key] = await make()
                    while len(self._known) > self._most:
                        self._known.popitem(last=False)
                return self._known[key]
        self._known.move_to_end(key)
        return self._known[key]
