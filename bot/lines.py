"""One at a time for each of many: what takes long of one member's waits for their own, and for nobody else's.

Knows names and locks; knows nothing of what is done meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bot.refused import Refused

MOST = 4  # of one member, of which one has its turn
BUSY = f"{MOST} of your requests with pictures are under way already, the most at once. Try again when one is done."


@dataclass
class _Line:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class Lines:
    """A line for each name, as long as somebody stands in it."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """The body runs when all that came earlier under that name is done. Raises `Refused` (429) in a full line."""
        line = self._lines.setdefault(name, _Line())
        if line.length >= self._most:
            raise Refused(BUSY, 429)
        line.length += 1
        try:
            async with line.lock:
                yield
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[name]
