"""A proxy to the broker that can fail: cut, silent, lossy or slow. Each process has one, so that one can fail alone.

Knows bytes, not what they mean. TCP itself never reorders or doubles; `hostile_client` does that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

ProxyMode = Literal["pass", "cut", "hold", "drop", "slow"]
CHUNK_DELAY = 0.05  # seconds that each chunk takes
CHUNK = 64 * 1024


class Proxy:
    """Listens on `port` within `async with proxy.open():`. Held bytes come late, dropped bytes never."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.mode: ProxyMode = "pass"
        self._flow_gate = asyncio.Event()
        self._flow_gate.set()
        self._lines: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._abort_connections()
            server.close()

    def set_mode(self, mode: ProxyMode) -> None:
        """Sets the mood from now on. The end of "drop" also breaks the connections that lost bytes."""
        if mode == "cut" or self.mode == "drop":
            self._abort_connections()
        self.mode = mode
        if mode in ("hold", "drop"):
            self._flow_gate.clear()
        else:
            self._flow_gate.set()

    def _abort_connections(self) -> None:
        for writer in list(self._lines):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "cut":
            writer.transport.abort()
            return
        self._lines.add(writer)
        broker_writer = None
        try:
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self._lines.add(broker_writer)
            await self._run_both(self._forward(reader, broker_writer), self._forward(broker_reader, writer))
        except OSError:
            return  # the broker is down, or a client disconnected
        finally:
            for connection in (writer, broker_writer):
                if connection is not None:
                    self._lines.discard(connection)
                    connection.transport.abort()

    async def _run_both(self, *directions: object) -> None:
        """Runs both directions until one of them ends."""
        tasks = [asyncio.ensure_future(direction) for direction in directions]  # pyright: ignore[reportArgumentType, reportCallIssue]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                await self._flow_gate.wait()
                if self.mode == "slow":
                    await asyncio.sleep(CHUNK_DELAY)
                writer.write(chunk)
                await writer.drain()
