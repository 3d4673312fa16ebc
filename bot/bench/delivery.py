"""Measures how long a preview travels: from the worker to the bot's subscriber, and on to a hundred open pages.

Broker, `darkroom bot`, the worker (`stamper`) and this process, which holds all pages, are separate processes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from bot.bench.figures import Row, at, row
from bot.bench.stamper import NAME, stamp_of
from bot.bench.viewers import Viewer, viewers
from bot.cli.running import find
from engine.bus import Bus
from engine.bus.broker import Broker

PAGES = 100
FRAMES, QUICK = 150, 40
PAUSE = 0.1  # seconds between two frames: the pace of a page that watches one job
BYTES = 8_000
WARMING = 5  # frames that fill caches
PATIENCE = 60.0
SUBSCRIBER, P50, P99 = "frame → the bot's subscriber, p99", "frame → 100 viewers, p50", "frame → 100 viewers, p99"
NAMES = (SUBSCRIBER, P50, P99)


async def measure(database: str | None, name: str, *, quick: bool) -> list[Row]:
    """Measure one watched job, whose frames come one at a time."""
    frames = QUICK if quick else FRAMES
    async with AsyncExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        broker = await parts.enter_async_context(Broker(folder / "nats"))
        secrets = {"DARKROOM_NATS_TOKEN": broker.token, "DISCORD_TOKEN": ""}
        store = {"DATABASE_URL": database} if database else {}
        await parts.enter_async_context(_process("bot", _bot(broker, folder), folder, secrets | store))
        url = await _opened(folder)
        stamper = [sys.executable, "-m", "bot.bench.stamper", broker.url, str(frames), str(PAUSE), str(BYTES)]
        await parts.enter_async_context(_process(NAME, stamper, folder, secrets))
        seen = await _watched(broker, url, frames)
    return told(name, *seen, frames - WARMING)


def told(name: str, direct: list[float], pages: list[list[float]], frames: int) -> list[Row]:
    """Return the rows: delays to the subscriber and to each page, of `frames` frames."""
    all_pages = [delay for page in pages for delay in page]
    note = f"{len(direct)} frames of {BYTES // 1000} KB, one each {1000 * PAUSE:.0f} ms"
    seen = f"{len(all_pages)} of {frames * PAGES} seen; slowest {max(all_pages, default=0.0):.0f} ms"
    seen += "; the pages' process shares the cores"
    return [
        row(
            SUBSCRIBER, name, at(direct, 0.99), f"{note}; p50 {at(direct, 0.5):.2g} ms, with 100 pages open",
            samples=len(direct), of=frames,
        ),
        row(P50, name, at(all_pages, 0.5), note, samples=len(all_pages), of=frames * PAGES),
        row(P99, name, at(all_pages, 0.99), seen, samples=len(all_pages), of=frames * PAGES),
    ]  # fmt: skip


async def _watched(broker: Broker, url: str, frames: int) -> tuple[list[float], list[list[float]]]:
    """Return the milliseconds of each frame: to a subscriber on the bus, and to each page."""
    bus = await Bus.connect(broker.url, broker.token)
    direct = list[float]()
    listening = asyncio.create_task(_listen(bus, direct))
    try:
        async with viewers(url, PAGES) as pages:
            await _ask(url)
            async with asyncio.timeout(PATIENCE + frames * PAUSE):
                while len(direct) < frames:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)  # the last frame still travels to the pages
            return direct[WARMING:], [_warm(page) for page in pages]
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await bus.close()


def _warm(page: Viewer) -> list[float]:
    return page.delays()[WARMING:]


async def _listen(bus: Bus, direct: list[float]) -> None:
    async for frame in bus.frames():
        direct.append(1000 * (time.monotonic() - stamp_of(frame.picture)))


async def _ask(url: str) -> None:
    """Submit one job by the HTTP API, as soon as the bot knows the worker."""
    async with aiohttp.ClientSession(url) as session, asyncio.timeout(PATIENCE):
        while True:
            async with session.post("/api/jobs", json={"prompt": "a clock", "model": NAME, "count": 1}) as answer:
                if answer.status == 201:
                    return
            await asyncio.sleep(0.2)


def _bot(broker: Broker, folder: Path) -> list[str]:
    return [sys.executable, "-m", "bot", "bot", "--nats", broker.url, "--data", str(folder / "bot"), "--port", "0"]


async def _opened(folder: Path) -> str:
    async with asyncio.timeout(PATIENCE):
        while (running := find(folder / "bot")) is None:
            await asyncio.sleep(0.05)
    return running.url


@asynccontextmanager
async def _process(name: str, command: list[str], folder: Path, more: Mapping[str, str]) -> AsyncIterator[None]:
    """Run a process while the context lasts."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("DARKROOM_")}
    with (folder / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env={**plain, **more}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
