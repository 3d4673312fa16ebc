"""The system under measurement: the real bot in this process, a real database, a broker and workers.

It opens and closes them; it measures nothing.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from benchmarks.queue.system.bench_workers import BenchWorkers
from bot.app.settings import Settings, load_settings
from bot.app.wiring import App, open_app
from bot.domain.dto import Destination, Member
from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from engine.process.heap import exempt_from_collection

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
        seconds[name] = (
            int(fields[11]) + int(fields[12])
        ) / TICKS_PER_SECOND  # utime and stime (proc_pid_stat(5), 14 and 15)
    return seconds
