"""One whole Darkroom as real processes: broker, database, bot and workers, with a loopback Discord.

Knows command lines, ports and folders, but no faults and no invariants.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from engine.bus import Bus
from engine.bus.embedded_broker import find_free_port, find_server
from tools.chaos.database import Database, PostgreSQL, SQLite
from tools.chaos.program import ROOT, Program
from tools.chaos.proxy import Proxy
from tools.chaos.timeline import Timeline
from tools.chaos.tmpfs import Disk, mount_tmpfs
from tools.loopback.server import TOKEN, Loopback

OWN_PREFIXES = ("DARKROOM_", "DISCORD_", "COVERAGE_", "DATABASE_URL")
HIGH_LIMITS = {"DARKROOM_RUNNING": "1000", "DARKROOM_QUEUED": "1000", "DARKROOM_COST_DAY": "1000000"}
START_TIMEOUT = 240.0  # a real engine loads and calibrates
BROKER = """\
host: "127.0.0.1"
port: {port}
server_name: "darkroom"
max_payload: 8388608
max_pending: 134217728
write_deadline: "10s"
authorization {{ token: "{token}" }}
jetstream {{ store_dir: "{store}", sync_interval: always, max_file_store: 8589934592 }}
"""
CALIBRATION_SCRIPT = """
import sys
from pathlib import Path
from engine.calibration.calibration import calibrate
from engine.models.families.embedded import load_embedded
from engine.upscaling.super_resolver import SuperResolver
calibrate(load_embedded(resolver=SuperResolver.load(None)), Path(sys.argv[1]))
"""


@dataclass(frozen=True)
class Build:
    """What to install. `row_ms`: of the simulated engine; `disks`: broker and bot have small disks of their own."""

    engine: str = "simulated"
    database: str = "sqlite"
    workers: int = 2
    row_ms: float = 4.0
    disks: bool = False
    standby: bool = False  # a second bot waits for the first one's folder

    @property
    def model(self) -> str:
        return "simulated" if self.engine == "simulated" else "embedded"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"w{number + 1}" for number in range(self.workers))


@dataclass
class Installation:
    """The running processes and their addresses. `proxies`: process → its connection to the broker."""

    build: Build
    folder: Path
    timeline: Timeline
    loopback: Loopback
    port: int
    token: str
    web_port: int
    database: Database
    proxies: dict[str, Proxy] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The URL of the web page."""
        return f"http://127.0.0.1:{self.web_port}"

    @property
    def broker_url(self) -> str:
        """The broker's own URL, without a proxy that may fail."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        """The broker's store."""
        return self.folder / "broker" / "store"

    def find_working_program(self, name: str) -> Program:
        """The program of that name; of two bots the one that works, if that is known."""
        with suppress(OSError, ValueError, KeyError, StopIteration):
            if name == "bot" and self.build.standby:
                pid = json.loads((self.folder / "bot" / "running.json").read_text())["pid"]
                return next(one for one in self.programs.values() if one.process and one.process.pid == pid)
        return self.programs[name]

    async def wait_until_ready(self, workers: int, seconds: float = START_TIMEOUT) -> None:
        """Waits until the web page answers, reports so many workers, and Discord is connected."""
        async with asyncio.timeout(seconds):
            while not await self.is_ready(workers):
                await asyncio.sleep(0.2)

    async def is_ready(self, workers: int = 0) -> bool:
        """Whether the web page answers and reports so many workers, and Discord is connected."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as session,
                session.get(self.url + "/healthz") as answer,
            ):
                health = await answer.json()
                return answer.status == 200 and health["workers"] >= workers and self.loopback.gateway.has_all_shards()
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
            return False

    def make_environment(self, **variables: str) -> dict[str, str]:
        """An environment with `variables` and without any other variable of ours."""
        clean_environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIXES)}
        return clean_environment | {"PYTHONWARNINGS": "ignore", "DARKROOM_NATS_TOKEN": self.token} | variables


@asynccontextmanager
async def start_installation(build: Build, folder: Path, timeline: Timeline) -> AsyncIterator[Installation]:
    """Starts everything and waits until it is ready; stops it in order afterwards."""
    async with AsyncExitStack() as parts:
        loopback = Loopback(validates=False)
        await parts.enter_async_context(loopback.open())
        data = folder / "bot"
        database = PostgreSQL(folder / "database.log", timeline) if build.database == "postgres" else SQLite(data)
        site = Installation(
            build, folder, timeline, loopback, find_free_port(), secrets.token_hex(16), find_free_port(), database
        )
        _make_folders(parts, site)
        for name in ("bot", *build.names):  # they outlive the programs, which stop in order
            site.proxies[name] = await parts.enter_async_context(Proxy(site.port).open())
        tasks = await parts.enter_async_context(_keep_programs(site))
        if isinstance(database, PostgreSQL):
            await asyncio.to_thread(database.create_cluster)
            tasks.add("database", database.program)
            await database.wait_until_ready()
        tasks.add("broker", await asyncio.to_thread(_make_broker, site))
        await _declare_streams(site)
        if build.engine == "real":
            await asyncio.to_thread(_calibrate, site)
        for name in build.names:
            tasks.add(name, _make_worker(site, name))
        tasks.add("bot", _make_bot(site, "bot"))
        await site.wait_until_ready(build.workers)
        if build.standby:
            tasks.add("standby", _make_bot(site, "standby"))
        yield site


class ProgramKeepers:
    """The tasks that keep programs alive."""

    def __init__(self, site: Installation) -> None:
        self.site = site
        self.tasks = list[asyncio.Task[None]]()

    def add(self, name: str, program: Program | None) -> None:
        assert program
        self.site.programs[name] = program
        self.tasks.append(asyncio.create_task(program.keep_running(), name=name))


@asynccontextmanager
async def _keep_programs(site: Installation) -> AsyncIterator[ProgramKeepers]:
    """Stops bot and workers first, then the broker and the database that they need."""
    keepers = ProgramKeepers(site)
    try:
        yield keepers
    finally:
        client_programs = [program for name, program in site.programs.items() if name not in ("broker", "database")]
        await asyncio.gather(*(program.stop() for program in client_programs))
        for name in ("broker", "database"):
            if name in site.programs:
                await site.programs[name].stop()
        await asyncio.gather(*keepers.tasks, return_exceptions=True)


def _make_folders(parts: AsyncExitStack, site: Installation) -> None:
    for name in ("bot", "broker", *site.build.names):
        folder = site.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if site.build.disks and name in ("bot", "broker"):
            parts.enter_context(mount_tmpfs(folder))
            site.disks[name] = Disk(folder)
            parts.callback(_copy_disk, folder, site.folder / f"{name}-kept")


def _copy_disk(disk_folder: Path, target: Path) -> None:
    """Copies the files of a small disk, which vanish with it."""
    with suppress(OSError):
        shutil.copytree(disk_folder, target, ignore=shutil.ignore_patterns("ballast"))


def _make_broker(site: Installation) -> Program:
    path = site.folder / "broker" / "nats.conf"
    path.write_text(BROKER.format(port=site.port, token=site.token, store=site.store))
    return Program("broker", [str(find_server()), "-c", str(path)], site.folder / "broker.log", site.timeline)


async def _declare_streams(site: Installation) -> None:
    """Waits for the broker and declares the streams."""
    bus = await Bus.connect(site.broker_url, site.token, timeout=30)
    await bus.declare()
    await bus.close()


def _make_worker(site: Installation, name: str) -> Program:
    command = [sys.executable, "-m", "engine", "serve", "--name", name]
    command += ["--nats", f"nats://127.0.0.1:{site.proxies[name].port}", "--data", str(site.folder / name)]
    if site.build.engine == "simulated":
        command += ["--simulated", "--row-ms", str(site.build.row_ms)]
    env = site.make_environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", DARKROOM_PARENT=str(os.getpid()))
    return Program(name, command, site.folder / f"{name}.log", site.timeline, env)


def _make_bot(site: Installation, name: str) -> Program:
    command = [sys.executable, "-m", "bot", "bot", "--port", str(site.web_port), "--data", str(site.folder / "bot")]
    command += ["--nats", f"nats://127.0.0.1:{site.proxies['bot'].port}", *["--standby"] * site.build.standby]
    discord = {
        "DARKROOM_DISCORD_API": site.loopback.api,
        "DARKROOM_DISCORD_GATEWAY": site.loopback.gateway.url,
        "DISCORD_TOKEN": TOKEN,
    }
    database = {"DATABASE_URL": site.database.url} if site.database.url else {}
    env = site.make_environment(**HIGH_LIMITS, **discord, **database)
    return Program(name, command, site.folder / f"{name}.log", site.timeline, env)


def _calibrate(site: Installation) -> None:
    """One calibration for all workers: the campaign compares bytes, not speeds."""
    first, *other_files = [site.folder / name / "calibration.json" for name in site.build.names]
    env = site.make_environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    subprocess.run([sys.executable, "-c", CALIBRATION_SCRIPT, str(first)], check=True, cwd=ROOT, env=env)
    for other in other_files:
        shutil.copy(first, other)
