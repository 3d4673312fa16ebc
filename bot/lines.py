"""Per-member serialisation: a member's slow requests run one at a time and delay nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bot.refused import Refused

MOST = 4  # requests of one member: one that runs, the others wait
BUSY = f"{MOST} of your requests with pictures are under way already, the most at once. Try again when one is done."


@dataclass
class _Line:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class Lines:
    """One line for each name, while a request stands in it."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Run the body after all earlier ones of that name. Raises `Refused` (429) if the line is full."""
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
