"""Measures how long a preview travels: from the worker to the bot's subscriber, and on to a hundred open pages.

Broker, `darkroom bot`, the worker (`timestamp_worker`) and this process, which holds all pages, are separate processes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from benchmarks.queue.figures import make_row
from benchmarks.queue.system.timestamp_worker import WORKER_NAME, read_timestamp
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import percentile
from bot.cli.instance_lock import find_instance
from engine.bus import Bus
from engine.bus.embedded_broker import Broker

PAGE_COUNT = 100
FRAME_COUNT = 150
QUICK_FRAMES = 40
FRAME_SECONDS = 0.1  # seconds between two frames: the pace of a page that watches one job
FRAME_BYTES = 8_000
WARMUP_FRAMES = 5  # frames that fill caches
TIMEOUT_SECONDS = 60.0
SUBSCRIBER_NAME = "frame → the bot's subscriber, p99"
P50_NAME = "frame → 100 viewers, p50"
P99_NAME = "frame → 100 viewers, p99"
ROW_NAMES = (SUBSCRIBER_NAME, P50_NAME, P99_NAME)


async def measure(database: str | None, *, quick: bool) -> list[FigureRow]:
    """Measure one watched job, whose frames come one at a time."""
    frames = QUICK_FRAMES if quick else FRAME_COUNT
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        broker = await stack.enter_async_context(Broker(folder / "nats"))
        variables = {"DARKROOM_NATS_TOKEN": broker.token, "DISCORD_TOKEN": ""}
        store_variables = {"DATABASE_URL": database} if database else {}
        bot_options = ("bot", "bot", "--nats", broker.url, "--data", str(folder / "bot"), "--port", "0")
        await stack.enter_async_context(_run_module(bot_options, folder, variables | store_variables))
        url = await _wait_for_url(folder)
        worker = "benchmarks.queue.system.timestamp_worker"
        worker_options = (worker, broker.url, str(frames), str(FRAME_SECONDS), str(FRAME_BYTES))
        await stack.enter_async_context(_run_module(worker_options, folder, variables))
        delays = await _measure_delays(broker, url, frames)
    return build_rows(*delays, frames - WARMUP_FRAMES)


def build_rows(subscriber_delays: list[float], page_delays: list[list[float]], frames: int) -> list[FigureRow]:
    """Return the rows: delays to the subscriber and to each page, of `frames` frames."""
    all_pages = [delay for page in page_delays for delay in page]
    note = f"{len(subscriber_delays)} frames of {FRAME_BYTES // 1000} KB, one each {1000 * FRAME_SECONDS:.0f} ms"
    subscriber_note = f"{note}; p50 {percentile(subscriber_delays, 0.5):.2g} ms, with 100 pages open"
    page_note = (
        f"{len(all_pages)} of {frames * PAGE_COUNT} seen; slowest {max(all_pages, default=0.0):.0f} ms; the pages' "
        "process shares the cores"
    )
    figures = (
        (SUBSCRIBER_NAME, subscriber_delays, 0.99, subscriber_note, frames),
        (P50_NAME, all_pages, 0.5, note, frames * PAGE_COUNT),
        (P99_NAME, all_pages, 0.99, page_note, frames * PAGE_COUNT),
    )
    return [
        make_row(name, percentile(delays, quantile), text, len(delays), planned)
        for name, delays, quantile, text, planned in figures
    ]


async def _measure_delays(broker: Broker, url: str, frames: int) -> tuple[list[float], list[list[float]]]:
    """Return the milliseconds of each frame: to a subscriber on the bus, and to each page."""
    bus = await Bus.connect(broker.url, broker.token)
    subscriber_delays = list[float]()
    listener = asyncio.create_task(_record_delays(bus, subscriber_delays))
    try:
        async with open_viewers(url, PAGE_COUNT) as pages:
            await _submit_job(url)
            async with asyncio.timeout(TIMEOUT_SECONDS + frames * FRAME_SECONDS):
                while len(subscriber_delays) < frames:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)  # the last frame still travels to the pages
            return subscriber_delays[WARMUP_FRAMES:], [page.frame_delays()[WARMUP_FRAMES:] for page in pages]
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        await bus.close()


async def _record_delays(bus: Bus, subscriber_delays: list[float]) -> None:
    async for frame in bus.watch_frames():
        subscriber_delays.append(1000 * (time.monotonic() - read_timestamp(frame.picture)))


async def _submit_job(url: str) -> None:
    """Submit one job by the HTTP API, as soon as the bot knows the worker."""
    job = {"prompt": "a clock", "model": WORKER_NAME, "count": 1}
    async with aiohttp.ClientSession(url) as session, asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            async with session.post("/api/jobs", json=job) as response:
                if response.status == 201:
                    return
            await asyncio.sleep(0.2)


async def _wait_for_url(folder: Path) -> str:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (instance := find_instance(folder / "bot")) is None:
            await asyncio.sleep(0.05)
    return instance.url


@asynccontextmanager
async def _run_module(options: Sequence[str], folder: Path, extra_variables: Mapping[str, str]) -> AsyncGenerator[None]:
    """Run a module of Python while the context lasts."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("DARKROOM_")}
    with (folder / f"{options[0]}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *options),
            env={**inherited, **extra_variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


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
