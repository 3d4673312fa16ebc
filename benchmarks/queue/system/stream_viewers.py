"""Clients of the page's live stream, one for each simulated open page: they note when each event arrives.

They note only the time while they read, and decode the events afterwards, so that reading costs little.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.queue.system.timestamp_worker import read_timestamp

FRAME_MARK = b"event: frame"
EVENT_END = b"\r\n\r\n"
STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30)
BUFFER_BYTES = 1 << 20


class StreamViewer:
    """One open page. `frames`: the arrival time of a frame's whole event, and the event."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, bytes]] = []
        self.connected = asyncio.Event()
        self._partial = b""

    async def read_stream(self, session: aiohttp.ClientSession) -> None:
        """Open the page as a new visitor, and read until its stream ends."""
        async with session.get("/") as response:
            cookie = response.headers["Set-Cookie"].partition(";")[0]
        async with session.get("/api/events", headers={"Cookie": cookie}) as response:
            response.raise_for_status()
            async for chunk in response.content.iter_any():
                self.connected.set()
                self.add_chunk(chunk, time.monotonic())

    def add_chunk(self, chunk: bytes, now: float) -> None:
        """Take a piece of the stream, which may hold the end of one event and the beginning of the next."""
        *events, self._partial = (self._partial + chunk).split(EVENT_END)
        self.frames += [(now, event) for event in events if FRAME_MARK in event]

    def frame_delays(self) -> list[float]:
        """Return the milliseconds from each frame's sending to its arrival."""
        return [1000 * (arrival - sent) for arrival, event in self.frames for sent in _send_times(event)]


def _send_times(event: bytes) -> list[float]:
    """Return when each of an event's frames was sent: its text is JSON, its pictures base64."""
    [data_line] = [line for line in event.split(b"\r\n") if line.startswith(b"data: ")]
    pictures = json.loads(data_line.removeprefix(b"data: "))["frames"].values()
    return [read_timestamp(base64.b64decode(picture)) for picture in pictures]


@asynccontextmanager
async def open_viewers(url: str, count: int) -> AsyncGenerator[Sequence[StreamViewer]]:
    """Yield `count` viewers with open streams, each on its own connection."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        url,
        connector=connector,
        timeout=STREAM_TIMEOUT,
        read_bufsize=BUFFER_BYTES,
        cookie_jar=aiohttp.DummyCookieJar(),  # each viewer sends its own
    ) as session:
        pages = [StreamViewer() for _ in range(count)]
        tasks = [asyncio.create_task(page.read_stream(session)) for page in pages]
        try:
            async with asyncio.timeout(60):
                for page in pages:
                    await page.connected.wait()
            yield pages
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
