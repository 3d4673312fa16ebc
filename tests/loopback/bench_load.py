"""The load of a busy evening: a thousand watched jobs in 200 channels of 50 guilds, and what became of each.

The loopback and the members are this process, the bot, the broker and the device three others. All times are of the
machine's monotonic clock. Requests are held against Discord's description afterwards, so that the judge costs nothing
while it is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from engine.bus import Bus
from engine.bus.broker import Broker
from loopback.asked import Asked
from loopback.bot import Bot
from loopback.easel import WORKERS
from loopback.people import Act, Person
from loopback.server import Loopback
from loopback.troubles import Troubles

SHORT, LONG = 52.0, 64.0  # seconds: below and above the minute from which on an end is told by a new message
RATE = 20.0  # requests for pictures a second
JOB = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
HEARD = 30.0  # seconds for the bot to hear of the device
ROOM = {"DARKROOM_RUNNING": "1000", "DARKROOM_QUEUED": "1000", "DARKROOM_COST_DAY": "1000000"}


@dataclass(frozen=True)
class Size:
    """How much of it."""

    jobs: int = 1000
    channels: int = 200
    guilds: int = 50
    short: float = SHORT
    long: float = LONG
    finals: float = RATE  # a second, at most
    after: float = 3.0  # seconds in which what comes twice would come


@dataclass
class Evening:
    """What was seen."""

    size: Size
    loopback: Loopback
    acts: list[Act] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)  # job → when its device was done
    stored: dict[str, float] = field(default_factory=dict)  # job → when the bot had stored that
    memory: int = 0  # bytes, the most
    cpu: dict[str, float] = field(default_factory=dict)  # who → seconds of a core
    seconds: float = 0.0  # on the wall, from the first request to the last final

    def final_of(self) -> dict[str, list[Asked]]:
        """The requests that brought a job's finished picture."""
        found: dict[str, list[Asked]] = defaultdict(list)
        for one in self.loopback.asked:
            if one.files and one.files[0].filename.startswith("darkroom-") and one.status == 200:
                found[one.files[0].filename[9:35]].append(one)
        return found

    def previews_of(self) -> dict[str, list[Asked]]:
        """The requests that brought a job's frames."""
        found: dict[str, list[Asked]] = defaultdict(list)
        for one in self.loopback.asked:
            if one.files and one.files[0].filename == "developing.jpg" and (match := JOB.search(str(one.body))):
                found[match[0]].append(one)
        return found


@asynccontextmanager
async def easel(broker: Broker, size: Size, ended: dict[str, float]) -> AsyncIterator[None]:
    """The device, until the body ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loopback.easel", broker.url, str(size.short), str(size.long), str(size.finals),
        cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"tests{os.pathsep}.", "DARKROOM_NATS_TOKEN": broker.token},
    )  # fmt: skip
    reading = asyncio.create_task(_read(process, ended))
    try:
        yield
    finally:
        process.kill()
        await process.wait()
        await reading


async def _read(process: asyncio.subprocess.Process, ended: dict[str, float]) -> None:
    assert process.stdout
    async for line in process.stdout:
        told = json.loads(line)
        ended[told["job"]] = told["at"]


async def evening(
    folder: Path, size: Size, say: Callable[[str], None], troubled: Callable[[Troubles], object] = lambda troubles: None
) -> Evening:
    """All of it, until every final was shown or for long nothing came. `troubled` orders what is in the way."""
    loopback = Loopback(clock=time.monotonic, judged=False)
    troubled(loopback.troubles)
    seen = Evening(size, loopback)
    guilds = [loopback.world.create_guild(f"guild {number}") for number in range(size.guilds)]
    channels = [
        guilds[number % size.guilds].create_text_channel(f"pictures-{number}") for number in range(size.channels)
    ]
    people = [
        Person(loopback, f"member {number}", guilds[number % size.channels % size.guilds], patience=30.0)
        for number in range(size.jobs)
    ]
    async with loopback.open(), Broker(folder / "nats") as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        await bus.close()
        bot = Bot(loopback, broker, folder / "bot", **ROOM)
        await asyncio.to_thread(bot.folder.mkdir, parents=True)
        async with easel(broker, size, seen.ended):
            await bot.start()
            await _heard(bot)
            before, began = _cpu(bot), time.monotonic()
            watching = asyncio.create_task(_watch(bot, seen, say))
            try:
                await _ask(people, channels, seen)
                await _finish(seen)
            finally:
                watching.cancel()
            seen.seconds = time.monotonic() - began
            seen.cpu = {who: used - before.get(who, 0.0) for who, used in _cpu(bot).items()}
        await bot.end()
    seen.stored = await asyncio.to_thread(_stored, folder / "bot" / "darkroom.sqlite")
    return seen


async def _heard(bot: Bot) -> None:
    """Until the bot counts on every worker of the device; without one there is nothing to measure."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(HEARD):
        while True:
            async with session.get(f"{bot.room()}/healthz") as answer:
                if (await answer.json())["workers"] == len(WORKERS):
                    return
            await asyncio.sleep(0.1)


def _stored(database: Path) -> dict[str, float]:
    """When each job was over, as the bot's store has it; by the monotonic clock."""
    with closing(sqlite3.connect(database)) as store:
        rows = store.execute("SELECT id, ended FROM jobs WHERE ended IS NOT NULL").fetchall()
    shift = time.monotonic() - time.time()
    return {job: ended + shift for job, ended in rows}


async def _ask(people: list[Person], channels: list, seen: Evening) -> None:
    """Each member asks once, at an even pace."""
    began = time.monotonic()
    for number, person in enumerate(people):
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        channel = channels[number % len(channels)]
        seen.acts.append(await person.slash(channel, "imagine", prompt=f"red apple {number}"))


async def _finish(seen: Evening) -> None:
    """Until every job's picture is there; or for a minute nothing more came."""
    quiet = time.monotonic()
    known = -1
    while known < seen.size.jobs and time.monotonic() - quiet < 90.0:
        await asyncio.sleep(0.5)
        count = len(seen.final_of())
        if count != known:
            known, quiet = count, time.monotonic()
    await asyncio.sleep(seen.size.after)


async def _watch(bot: Bot, seen: Evening, say: Callable[[str], None]) -> None:
    while True:
        seen.memory = max(seen.memory, await asyncio.to_thread(bot.memory))
        say(
            f"{len(seen.acts)} asked, {len(seen.ended)} ended, {len(seen.final_of())} shown, "
            f"{seen.loopback.rates.refused} × 429, {seen.memory / 1e6:.0f} MB"
        )
        await asyncio.sleep(5.0)


def _cpu(bot: Bot) -> dict[str, float]:
    """Seconds of a core that the bot, the loopback with its members, and their broker and device have had."""
    used: dict[str, float] = {}
    for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        who = "bot" if one.pid == bot.pid else "loopback" if one.pid == os.getpid() else _name(one)
        times = one.cpu_times()
        used[who] = used.get(who, 0.0) + times.user + times.system
    return used


def _name(process: psutil.Process) -> str:
    return "broker" if "nats" in process.name() else "device"
