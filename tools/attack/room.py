"""A Darkroom under attack: a broker, the bot, and a simulated worker with a key, as real processes.

Knows command lines, folders and processes; nothing of the attacks.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from engine.bus.embedded_broker import Broker, WorkerKeyAdmin, find_free_port
from engine.bus.worker_keys import KEY_FILE

ROOT = Path(__file__).parents[2]
OWN_PREFIXES = ("DARKROOM_", "DISCORD_", "COVERAGE_", "DATABASE_URL")
LIMITS = {"DARKROOM_COST_DAY": "1000000", "DARKROOM_RUNNING": "20", "DARKROOM_QUEUED": "100"}
DESCRIPTORS = 1024  # the soft limit that most systems start a program with
START_TIMEOUT = 60.0
HONEST_WORKER = "honest"
HOSTILE_WORKER = "far"
DAY = "2026-11-29"


@dataclass
class Room:
    """A running Darkroom. `is_open`: for this machine alone; else others can reach it by DARKROOM_PUBLIC_URL."""

    folder: Path
    is_open: bool
    port: int = field(default_factory=find_free_port)
    broker: Broker | None = None
    keys: dict[str, str] = field(default_factory=dict[str, str])  # worker → key
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def broker_url(self) -> str:
        assert self.broker
        return self.broker.url

    @property
    def bot(self) -> psutil.Process:
        return psutil.Process(self.processes[0].pid)

    @property
    def is_alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def read_printed(self) -> str:
        return (self.folder / "bot.txt").read_text(errors="replace")

    def read_owner_token(self) -> str:
        """The token of the one-time address that the bot printed last; empty if there is none."""
        tokens = re.findall(r"[?#&]token=([\w.~-]+)", self.read_printed())
        return tokens[-1] if tokens else ""

    @property
    def broker_token(self) -> str:
        """The token of the bot's own user at its broker."""
        assert self.broker
        return self.broker.token

    def change_job(self, job: str, column: str, value: object) -> None:
        """Writes a column of a job into the database: a private job, or one of another server."""
        assert column in ("private", "guild")
        with closing(sqlite3.connect(self._find_database(), timeout=10)) as database, database:
            changed = database.execute(f"UPDATE jobs SET {column} = ? WHERE id = ?", (value, job))
            assert changed.rowcount == 1

    def _find_database(self) -> Path:
        return next(path for path in self.data.iterdir() if path.suffix in (".db", ".sqlite", ".sqlite3"))

    async def start(self) -> None:
        """Starts both processes, and waits until the worker is known."""
        self.data.mkdir(parents=True, exist_ok=True)
        admin = WorkerKeyAdmin(self.data / KEY_FILE, self.folder / "nats")
        for name in (HONEST_WORKER, HOSTILE_WORKER):  # an earlier room on this folder made keys of these names
            if name in [one.name for one in await asyncio.to_thread(admin.list_keys)]:
                await asyncio.to_thread(admin.revoke_key, name)
            self.keys[name] = (await asyncio.to_thread(admin.add_key, name, ["default"], DAY))[1]
        self.broker = Broker(self.folder / "nats", workers=self.data / KEY_FILE)
        await self.broker.__aenter__()
        command = ["bot", "bot", "--port", str(self.port), "--data", str(self.data), "--nats", self.broker_url]
        public = {} if self.is_open else {"DARKROOM_PUBLIC_URL": "https://room.example"}
        self._spawn("bot", command, DARKROOM_NATS_TOKEN=self.broker_token, **LIMITS, **public)
        command = ["engine", "serve", "--simulated", "--name", HONEST_WORKER, "--nats", self.broker_url]
        command += ["--data", str(self.folder / "worker")]
        await self._wait_for_workers(0)
        self._spawn("worker", command, DARKROOM_NATS_KEY=self.keys[HONEST_WORKER])
        await self._wait_for_workers(1)

    def _spawn(self, name: str, command: list[str], **variables: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(OWN_PREFIXES)}
        shell = ["sh", "-c", f'ulimit -S -n {DESCRIPTORS} && exec "$@"', "sh", sys.executable, "-m", *command]
        env = clean | {"PYTHONWARNINGS": "ignore", "DARKROOM_PARENT": str(os.getpid())} | variables
        with (self.folder / f"{name}.txt").open("ab") as output:
            self.processes.append(
                subprocess.Popen(shell, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            )

    async def _wait_for_workers(self, count: int) -> None:
        async with asyncio.timeout(START_TIMEOUT), aiohttp.ClientSession() as client:
            while True:
                with suppress(aiohttp.ClientError, ValueError, KeyError, TimeoutError):
                    async with client.get(f"{self.url}/healthz", timeout=aiohttp.ClientTimeout(2)) as answer:
                        if (await answer.json())["workers"] >= count:
                            return
                if not self.is_alive:
                    raise RuntimeError(f"a process ended at once; see {self.folder}: {self.read_printed()[-2000:]}")
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """Ends the worker, the bot, then the broker."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, 20)
            if process.poll() is None:
                process.kill()
                await asyncio.to_thread(process.wait)
        self.processes.clear()
        if self.broker is not None:
            await self.broker.__aexit__(None, None, None)


@asynccontextmanager
async def start_room(folder: Path, *, is_open: bool) -> AsyncGenerator[Room]:
    """Starts a room on the folder, which may hold an earlier one, and stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    room = Room(folder, is_open)
    try:
        await room.start()
        yield room
    finally:
        await room.stop()
