"""The system under measurement: the real bot in this process, a database, a broker, workers, and its page's client.

Workers are processes with the real engine, over a device that only takes time or with the embedded model. It opens and
closes all of them; it measures nothing. A watch follows every job by the bot's feed, with live previews as an open page
has them; its times are of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import aiohttp
from pydantic import SecretStr

from bot.app.settings import Settings, load_settings
from bot.app.wiring import App, open_app
from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.domain.events import Feed, JobEnded, JobProgress
from bot.domain.job_states import JobState
from bot.store.jobs import queries
from bot.web.app import build_app, run_server
from bot.web.auth import terminal_key
from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from engine.contract import Presence
from engine.process.system import exempt_from_collection

WEB_DESTINATION = Destination("web")
UNLIMITED_JOBS = 10_000  # jobs that a member may have at once: limits are not measured here
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class BenchSystem:
    """A running system. `folder`: for the files of a measurement."""

    broker: Broker
    bus: Bus
    app: App
    workers: BenchWorkers
    folder: Path

    async def imagine(self, prompt: str, member: Member) -> str:
        """Submit one prompt; return the id of the admitted job."""
        [accepted] = await self.app.services.jobs.imagine(prompt, member, WEB_DESTINATION)
        return accepted.job

    async def measure_cost(self, watch: JobWatch, jobs: Sequence[str]) -> float:
        """Return the device-seconds of these jobs so far: of running ones, by the newest step in a preview."""
        records = (await self.app.store.query(queries.get_jobs, jobs)).values()
        return sum(
            record.cost * (1.0 if record.state == "finished" else watch.latest_steps.get(record.id, 0) / record.steps)
            for record in records
        )


def make_member(number: int, guild: int = 0) -> Member:
    """Return member `number`."""
    return Member(f"bench:{number}", f"Member {number}", f"guild-{guild}")


def make_settings(folder: Path, database: str) -> Settings:
    """Return the settings of a bot in this folder, without limits on members."""
    return load_settings(
        data=folder,
        database_url=SecretStr(database),
        pictures_url=SecretStr(str(folder / "pictures")),
        running=1000,
        queued=UNLIMITED_JOBS,
        cost_day=1e9,
    )


@asynccontextmanager
async def open_system(database: str | None) -> AsyncGenerator[BenchSystem]:
    """Yield a fresh installation. `database`: its URL, None for SQLite in its folder."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        broker = await stack.enter_async_context(Broker(folder / "nats"))
        bus = await Bus.connect(broker.url, broker.token)
        stack.push_async_callback(bus.close)
        await bus.declare()
        url = database or f"sqlite:///{folder / 'darkroom.sqlite'}"
        app = await stack.enter_async_context(open_app(make_settings(folder, url), bus))
        workers = await stack.enter_async_context(BenchWorkers(broker.url, broker.token, folder, bus.get_workers))
        exempt_from_collection()  # as `darkroom up` does once its parts run
        stack.callback(gc.unfreeze)  # another installation may follow in this process
        yield BenchSystem(broker, bus, app, workers, folder)


def cpu_seconds(pids: Mapping[str, int | None]) -> dict[str, float]:
    """Return the CPU seconds of each of these processes; without those that this machine does not tell."""
    seconds: dict[str, float] = {}
    for name, pid in pids.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # utime and stime (proc_pid_stat(5), 14 and 15)
        seconds[name] = (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    return seconds


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


@asynccontextmanager
async def open_client(system: BenchSystem) -> AsyncGenerator[aiohttp.ClientSession]:
    """Yield an HTTP client of the system's page, with the terminal's key."""
    settings = make_settings(system.folder, f"sqlite:///{system.folder / 'darkroom.sqlite'}")
    app = build_app(settings, system.app.services)
    headers = {"Authorization": f"Bearer {terminal_key(system.folder)}"}
    async with (
        run_server(app, "127.0.0.1", 0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers, read_bufsize=1 << 22) as client,
    ):
        yield client


TIMEOUT_SECONDS = 180.0


class JobWatch:
    """The progress of every job. `first_preview_times`: when a job's first preview came; `first_step_times`: when the
    first sign of a step came, with a preview or without.
    """

    def __init__(self) -> None:
        self.first_preview_times: dict[str, float] = {}
        self.first_step_times: dict[str, float] = {}
        self.latest_steps: dict[str, int] = {}
        self.first_steps: dict[str, int] = {}  # the step of a job's first preview
        self.ends: dict[str, tuple[float, JobState]] = {}
        self._changed = asyncio.Event()

    async def follow(self, feed: Feed) -> None:
        """Follow the feed until it closes."""
        async with feed.subscribe() as events:
            async for event in events:
                if isinstance(event, JobProgress):
                    self.first_step_times.setdefault(event.job, time.monotonic())
                if isinstance(event, JobProgress) and event.frames:
                    self.first_preview_times.setdefault(event.job, time.monotonic())
                    self.first_steps.setdefault(event.job, event.step)
                    self.latest_steps[event.job] = event.step
                elif isinstance(event, JobEnded):
                    self.ends[event.job] = (time.monotonic(), event.state)
                self._changed.set()

    async def wait_until(self, condition: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> None:
        """Wait until `condition()` holds, checked at every event. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait_for_end(self, job: str) -> float:
        """Return when a job was finished. Raises RuntimeError if it ended otherwise."""
        await self.wait_until(lambda: job in self.ends)
        end_time, state = self.ends[job]
        if state != "finished":
            raise RuntimeError(f"A job of the benchmark was {state}.")
        return end_time


@asynccontextmanager
async def watch_jobs(feed: Feed) -> AsyncGenerator[JobWatch]:
    """Yield a watch that follows the feed while the context lasts."""
    watch = JobWatch()
    task = asyncio.create_task(watch.follow(feed))
    await asyncio.sleep(0)  # it is subscribed from now on
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
