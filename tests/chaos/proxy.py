"""A line to the broker that can fail: cut, silent, lossy or slow. One for each process, so that one alone is parted.

Knows bytes; nothing of what they mean. TCP itself never reorders or doubles: that is `liar`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

Mood = Literal["pass", "cut", "hold", "drop", "slow"]
SLOW = 0.05  # seconds that each piece takes
PIECE = 64 * 1024


class Proxy:
    """`async with proxy.open():` it listens on `port`. What is held comes late, what is dropped never came."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, 0
        self.mood: Mood = "pass"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._lines: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._break()
            server.close()

    def set(self, mood: Mood) -> None:
        """From now on; what was dropped until now takes its connections with it."""
        if mood == "cut" or self.mood == "drop":
            self._break()
        self.mood = mood
        if mood in ("hold", "drop"):
            self._flowing.clear()
        else:
            self._flowing.set()

    def _break(self) -> None:
        for writer in list(self._lines):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mood == "cut":
            writer.transport.abort()
            return
        self._lines.add(writer)
        upward = None
        try:
            there, upward = await asyncio.open_connection("127.0.0.1", self.target)
            self._lines.add(upward)
            await self._both(self._pump(reader, upward), self._pump(there, writer))
        except OSError:
            return  # the broker is away, or somebody left
        finally:
            for one in (writer, upward):
                if one is not None:
                    self._lines.discard(one)
                    one.transport.abort()

    async def _both(self, *ways: object) -> None:
        """Until one of them ends."""
        tasks = [asyncio.ensure_future(way) for way in ways]  # pyright: ignore[reportArgumentType, reportCallIssue]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(PIECE):
                await self._flowing.wait()
                if self.mood == "slow":
                    await asyncio.sleep(SLOW)
                writer.write(piece)
                await writer.drain()
