"""What takes long to make is made once, one at a time, and the last few are remembered. Knows nothing of what it is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Made(Generic[T]):
    """At most `most` are remembered. A key says all that something is made of: the same key, the same thing."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, ...], T] = OrderedDict()
        self._turn = asyncio.Lock()

    async def of(self, key: tuple[str, ...], make: Callable[[], Awaitable[T]]) -> T:
        """What is known of that key waits for nobody; what has to be made waits for what is being made."""
        if key not in self._known:
            async with self._turn:
                if key not in self._known:
                    self._known[key] = await make()
                    while len(self._known) > self._most:
                        self._known.popitem(last=False)
                return self._known[key]
        self._known.move_to_end(key)
        return self._known[key]
