"""A bot on the loopback Discord, its broker, and a real worker over a simulated device: each a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine.bus.embedded_broker import Broker
from tools.loopback.bench_load import HIGH_LIMITS
from tools.loopback.bot_process import ROOT, START_TIMEOUT, create_bot
from tools.loopback.server import Loopback, wait_until

WORDS = ("snow", "a lake", "at night", "more blue", "a red hat", "an old map", "fog", "flowers", "a full moon")


@asynccontextmanager
async def open_installation(loopback: Loopback, folder: Path, row_ms: float) -> AsyncIterator[Path]:
    """Opens all until the worker can draw, and yields the bot's database. `row_ms`: of the device, for a row."""
    async with loopback.open(), create_bot(loopback, folder, **HIGH_LIMITS) as (bot, bus):
        await bus.watch_workers()
        async with _run_worker(bot.broker, folder / "worker", row_ms):
            await bot.start()
            await wait_until(lambda: bool(bus.get_workers()), START_TIMEOUT)
            yield bot.folder / "darkroom.sqlite"
        await bot.stop()


@asynccontextmanager
async def _run_worker(broker: Broker, folder: Path, row_ms: float) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "engine", "serve", "--simulated", "--row-ms", str(row_ms), "--name", "device"]
    environment = {**os.environ, "DARKROOM_NATS_TOKEN": broker.token, "DARKROOM_PARENT": str(os.getpid())}
    process = await asyncio.create_subprocess_exec(
        *command,
        "--nats",
        broker.url,
        "--data",
        str(folder),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()
