"""The system under measurement: the real bot in this process, a real database, a broker and simulated workers.

It opens and closes them; it measures nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from bot.bench.workers import Workers
from bot.config import Settings, load
from bot.house import House, open_house
from bot.views import Member, Place
from engine.bus import Bus
from engine.bus.broker import Broker

HERE = Place("web")
PLENTY = 10_000  # jobs that a member may have at once: limits are not measured here
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Premises:
    """A running system. `folder`: for the files of a measurement."""

    broker: Broker
    bus: Bus
    house: House
    workers: Workers
    folder: Path

    async def imagine(self, prompt: str, member: Member) -> str:
        """Submit one prompt; return the id of the admitted job."""
        [ticket] = await self.house.studio.imagine(prompt, member, HERE)
        return ticket.job


def member(number: int, guild: int = 0) -> Member:
    """Return member `number`."""
    return Member(f"bench:{number}", f"Member {number}", f"guild-{guild}")


def settings(folder: Path, database: str) -> Settings:
    """Return the settings of a bot in this folder, without limits on members."""
    return load(
        data=folder, database_url=SecretStr(database), pictures_url=SecretStr(str(folder / "pictures")),
        running=1000, queued=PLENTY, cost_day=1e9,
    )  # fmt: skip


@asynccontextmanager
async def premises(database: str | None) -> AsyncIterator[Premises]:
    """Yield a fresh installation. `database`: its URL, None for SQLite in its folder."""
    async with AsyncExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-bench-")))
        broker = await parts.enter_async_context(Broker(folder / "nats"))
        bus = await Bus.connect(broker.url, broker.token)
        parts.push_async_callback(bus.close)
        await bus.declare()
        url = database or f"sqlite:///{folder / 'darkroom.sqlite'}"
        house = await parts.enter_async_context(open_house(settings(folder, url), bus))
        workers = await parts.enter_async_context(Workers(broker.url, broker.token, folder, bus.presences))
        yield Premises(broker, bus, house, workers, folder)


def cpu_seconds(pids: Mapping[str, int | None]) -> dict[str, float]:
    """Return the CPU seconds of each of these processes; those that this machine does not tell are left out."""
    found: dict[str, float] = {}
    for name, pid in pids.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[name] = (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime (proc_pid_stat(5), 14 and 15)
    return found
