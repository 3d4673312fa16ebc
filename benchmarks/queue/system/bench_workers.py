"""Workers as processes: the real worker and engine, over a device that only takes time or with the embedded model."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from bot.domain.errors import UserError
from engine.contract import Presence

READY_SECONDS = 180.0  # importing torch is slow where eight start at once
BOT_SECRETS = ("DISCORD_TOKEN", "DATABASE_URL", "DARKROOM_PICTURES_URL")


class BenchWorkers:
    """An async context manager that kills the remaining workers at its end. `presences`: the announced ones."""

    def __init__(self, url: str, token: str, folder: Path, presences: Callable[[], Mapping[str, Presence]]) -> None:
        if find_spec("torch") is None:
            raise UserError("This needs the engine (torch is missing): pip install 'darkroom-bot[all]'.")
        self._url = url
        self._folder = folder
        self._presences = presences
        environment = {name: value for name, value in os.environ.items() if name not in BOT_SECRETS}
        self._environment = environment | {"DARKROOM_NATS_TOKEN": token, "DARKROOM_PARENT": str(os.getpid())}
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> BenchWorkers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(self.kill(name) for name in list(self._processes)))

    async def start(self, name: str, *, row_ms: float, rows: int = 32) -> None:
        """Start a worker over a simulated device; return once it takes jobs."""
        await self._start(name, "--simulated", "--row-ms", str(row_ms), "--rows", str(rows))

    async def start_embedded(self, name: str) -> None:
        """Start a worker with the embedded model, which it calibrates first; return once it takes jobs."""
        await self._start(name)

    async def _start(self, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "engine", "serve", "--nats", self._url, "--name", name]
        command += ["--data", str(self._folder), *options]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes[name] = process
        async with asyncio.timeout(READY_SECONDS):
            while name not in self._presences():
                if process.returncode is not None:
                    raise RuntimeError(f"The worker {name} ended with code {process.returncode}: see {log.name}.")
                await asyncio.sleep(0.02)

    def pids(self) -> dict[str, int]:
        """Return the process ids of the running workers."""
        return {name: process.pid for name, process in self._processes.items()}

    async def kill(self, name: str) -> None:
        """Kill a worker, as a power cut does: it hands nothing back."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    def stop(self, name: str) -> None:
        """Ask a worker to hand its jobs back and end; do not wait for that."""
        with suppress(ProcessLookupError):  # it has ended by itself
            self._processes[name].terminate()

    async def wait_for_end(self, name: str) -> None:
        """Wait until a stopped worker has ended."""
        await self._processes.pop(name).wait()
