"""The real bot as an unmodified process: `python -m bot bot`. Only its environment points it to the loopback Discord.

A real nats-server beside it outlives it. The bot can be killed and restarted; its log and memory can be read.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from tools.loopback.server import TOKEN, Loopback, wait_until
from tools.painter import PaintingWorker, cancel_task

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 60.0
OWN_PREFIXES = ("DARKROOM_", "DISCORD_", "COVERAGE_")


class Bot:
    """A bot process. After `kill`, `start` uses the same folder and broker again."""

    def __init__(self, loopback: Loopback, broker: Broker, folder: Path, **environment: str) -> None:
        self.loopback = loopback
        self.broker = broker
        self.folder = folder
        self.environment = environment
        self.log = folder / "printed.txt"
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    async def start(self, *, wait: bool = True) -> None:
        """Returns once every shard is connected and the commands are registered."""
        command = [sys.executable, "-m", "bot", "bot", "--port", "0"]
        command += ["--nats", self.broker.url, "--data", str(self.folder)]
        with await asyncio.to_thread(self.log.open, "ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=self._env(), stdout=output, stderr=output
            )
        if wait:
            await wait_until(self._is_up, START_TIMEOUT)

    def _env(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIXES)}
        settings = {
            "DARKROOM_DISCORD_API": self.loopback.api,
            "DARKROOM_DISCORD_GATEWAY": self.loopback.gateway.url,
            "DISCORD_TOKEN": TOKEN,
            "DARKROOM_NATS_TOKEN": self.broker.token,
            "PYTHONWARNINGS": "ignore",
        }
        return clean | settings | self.environment

    def _is_up(self) -> bool:
        assert self.process
        assert self.process.returncode is None, f"it ended with {self.process.returncode}: {self.read_output()}"
        return self.loopback.gateway.has_all_shards() and bool(self.loopback.world.backend.commands)

    def read_output(self) -> str:
        """Reads all output since its first start."""
        return self.log.read_text() if self.log.exists() else ""

    def find_page_url(self) -> str:
        """Finds the URL of its web page."""
        return json.loads((self.folder / "running.json").read_text())["url"]

    def measure_memory(self) -> int:
        """Measures the bytes of resident memory."""
        return psutil.Process(self.pid).memory_info().rss

    async def kill(self) -> None:
        """SIGKILL, as the kernel sends it when memory is short."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """Stops in order and returns the exit code."""
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 30)


@asynccontextmanager
async def create_bot(loopback: Loopback, folder: Path, **environment: str) -> AsyncIterator[tuple[Bot, Bus]]:
    """Opens a broker with its streams, and a client of it. The bot beside them is not started."""
    async with AsyncExitStack() as parts:
        broker = await parts.enter_async_context(Broker(folder / "nats"))
        bus = await Bus.connect(broker.url, broker.token)
        parts.push_async_callback(bus.close)
        await bus.declare()
        bot = Bot(loopback, broker, folder / "bot", **environment)
        await asyncio.to_thread(bot.folder.mkdir, parents=True, exist_ok=True)
        yield bot, bus


@asynccontextmanager
async def run_bot(loopback: Loopback, folder: Path, **environment: str) -> AsyncIterator[tuple[Bot, PaintingWorker]]:
    """Runs a bot beside an open loopback, and a worker in this process."""
    async with AsyncExitStack() as parts:
        bot, bus = await parts.enter_async_context(create_bot(loopback, folder, **environment))
        painter = PaintingWorker(bus)
        work: asyncio.Task[Any] = asyncio.create_task(painter.run())
        parts.push_async_callback(cancel_task, work)
        parts.push_async_callback(bot.stop)
        await bot.start()
        yield bot, painter
