"""Clients of the page's live stream, one for each simulated open page: they note when each event arrives.

They note only the time while they read. The events are decoded afterwards, so that reading costs little.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from bot.bench.stamper import stamp_of

FRAME = b"event: frame"
END = b"\r\n\r\n"
STREAM = aiohttp.ClientTimeout(total=None, sock_connect=30)
LARGE = 1 << 20


class Viewer:
    """One open page. `frames`: the arrival time of a frame's whole event, and the event."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, bytes]] = []
        self.open = asyncio.Event()
        self._rest = b""

    async def read(self, session: aiohttp.ClientSession) -> None:
        """Read until the stream ends."""
        async with session.get("/api/events") as answer:
            answer.raise_for_status()
            async for piece in answer.content.iter_any():
                self.open.set()
                self.take(piece, time.monotonic())

    def take(self, piece: bytes, now: float) -> None:
        """Take a piece of the stream, which may hold the end of one event and the beginning of the next."""
        *events, self._rest = (self._rest + piece).split(END)
        self.frames += [(now, event) for event in events if FRAME in event]

    def delays(self) -> list[float]:
        """Return the milliseconds from each frame's sending to its arrival."""
        return [1000 * (at - left) for at, event in self.frames for left in _stamps(event)]


def _stamps(event: bytes) -> list[float]:
    """Return when each of an event's frames was sent: its text is JSON, its pictures base64."""
    [said] = [line for line in event.split(b"\r\n") if line.startswith(b"data: ")]
    pictures = json.loads(said.removeprefix(b"data: "))["frames"].values()
    return [stamp_of(base64.b64decode(picture)) for picture in pictures]


@asynccontextmanager
async def viewers(url: str, count: int) -> AsyncIterator[Sequence[Viewer]]:
    """Yield `count` viewers with open streams, each on its own connection."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(url, connector=connector, timeout=STREAM, read_bufsize=LARGE) as session:
        readers = [Viewer() for _ in range(count)]
        tasks = [asyncio.create_task(reader.read(session)) for reader in readers]
        try:
            async with asyncio.timeout(60):
                for reader in readers:
                    await reader.open.wait()
            yield readers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
