"""The load of a busy evening: a thousand watched jobs in 200 channels of 50 guilds, and the outcome of each.

The loopback and the members share this process; the bot, the broker and the device are three others. All times are
the machine's monotonic clock. Requests are validated afterwards, so that validation costs nothing while it measures.
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
from engine.bus.broker.embedded import Broker
from loopback.bot_process import Bot
from loopback.faults import Troubles
from loopback.members import Act, Person
from loopback.recorded_request import Asked
from loopback.server import Loopback
from loopback.simulated_workers import WORKERS

SHORT, LONG = 52.0, 64.0  # seconds: above a minute the bot announces a job's end with a new message
RATE = 20.0  # requests for pictures a second
JOB = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
WORKERS_TIMEOUT = 30.0  # seconds for the bot to see the device
HIGH_LIMITS = {"DARKROOM_RUNNING": "1000", "DARKROOM_QUEUED": "1000", "DARKROOM_COST_DAY": "1000000"}


@dataclass(frozen=True)
class Size:
    """The size of an evening."""

    jobs: int = 1000
    channels: int = 200
    guilds: int = 50
    short: float = SHORT
    long: float = LONG
    finals: float = RATE  # a second, at most
    after: float = 3.0  # seconds in which a duplicate would arrive


@dataclass
class Evening:
    """What was measured on one evening."""

    size: Size
    loopback: Loopback
    acts: list[Act] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)  # job → when its device finished
    stored: dict[str, float] = field(default_factory=dict)  # job → when the bot stored the end
    memory: int = 0  # bytes, the most
    cpu: dict[str, float] = field(default_factory=dict)  # who → seconds of a core
    seconds: float = 0.0  # wall time, from the first request to the last final

    def final_of(self) -> dict[str, list[Asked]]:
        """The requests that carried a job's finished picture."""
        found: dict[str, list[Asked]] = defaultdict(list)
        for one in self.loopback.asked:
            if one.files and one.files[0].filename.startswith("darkroom-") and one.status == 200:
                found[one.files[0].filename[9:35]].append(one)
        return found

    def previews_of(self) -> dict[str, list[Asked]]:
        """The requests that carried a job's frames."""
        found: dict[str, list[Asked]] = defaultdict(list)
        for one in self.loopback.asked:
            if one.files and one.files[0].filename == "developing.jpg" and (match := JOB.search(str(one.body))):
                found[match[0]].append(one)
        return found


@asynccontextmanager
async def run_device(broker: Broker, size: Size, ended: dict[str, float]) -> AsyncIterator[None]:
    """Runs the simulated device for as long as the context lasts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loopback.simulated_workers", broker.url, str(size.short), str(size.long),
        str(size.finals), cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"tests{os.pathsep}.", "DARKROOM_NATS_TOKEN": broker.token},
    )  # fmt: skip
    reader = asyncio.create_task(_read_ends(process, ended))
    try:
        yield
    finally:
        process.kill()
        await process.wait()
        await reader


async def _read_ends(process: asyncio.subprocess.Process, ended: dict[str, float]) -> None:
    assert process.stdout
    async for line in process.stdout:
        report = json.loads(line)
        ended[report["job"]] = report["at"]


async def evening(
    folder: Path,
    size: Size,
    say: Callable[[str], None],
    order_faults: Callable[[Troubles], object] = lambda troubles: None,
) -> Evening:
    """Runs until every final is shown, or nothing new arrives for long. `order_faults` orders faults."""
    loopback = Loopback(clock=time.monotonic, judged=False)
    order_faults(loopback.troubles)
    result = Evening(size, loopback)
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
        bot = Bot(loopback, broker, folder / "bot", **HIGH_LIMITS)
        await asyncio.to_thread(bot.folder.mkdir, parents=True)
        async with run_device(broker, size, result.ended):
            await bot.start()
            await _wait_for_workers(bot)
            before, began = _measure_cpu(bot), time.monotonic()
            reporter = asyncio.create_task(_report_progress(bot, result, say))
            try:
                await _send_commands(people, channels, result)
                await _wait_for_finals(result)
            finally:
                reporter.cancel()
            result.seconds = time.monotonic() - began
            result.cpu = {who: used - before.get(who, 0.0) for who, used in _measure_cpu(bot).items()}
        await bot.end()
    result.stored = await asyncio.to_thread(_read_store_times, folder / "bot" / "darkroom.sqlite")
    return result


async def _wait_for_workers(bot: Bot) -> None:
    """Waits until the bot sees every worker of the device; without them there is nothing to measure."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(WORKERS_TIMEOUT):
        while True:
            async with session.get(f"{bot.room()}/healthz") as answer:
                if (await answer.json())["workers"] == len(WORKERS):
                    return
            await asyncio.sleep(0.1)


def _read_store_times(database: Path) -> dict[str, float]:
    """When each job ended by the bot's store, on the monotonic clock."""
    with closing(sqlite3.connect(database)) as store:
        rows = store.execute("SELECT id, ended FROM jobs WHERE ended IS NOT NULL").fetchall()
    shift = time.monotonic() - time.time()
    return {job: ended + shift for job, ended in rows}


async def _send_commands(people: list[Person], channels: list, result: Evening) -> None:
    """Each member sends one command, at an even pace."""
    began = time.monotonic()
    for number, person in enumerate(people):
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        channel = channels[number % len(channels)]
        result.acts.append(await person.slash(channel, "imagine", prompt=f"red apple {number}"))


async def _wait_for_finals(result: Evening) -> None:
    """Waits until every job's picture is there, or nothing new arrived for 90 seconds."""
    quiet = time.monotonic()
    known = -1
    while known < result.size.jobs and time.monotonic() - quiet < 90.0:
        await asyncio.sleep(0.5)
        count = len(result.final_of())
        if count != known:
            known, quiet = count, time.monotonic()
    await asyncio.sleep(result.size.after)


async def _report_progress(bot: Bot, result: Evening, say: Callable[[str], None]) -> None:
    while True:
        result.memory = max(result.memory, await asyncio.to_thread(bot.memory))
        say(
            f"{len(result.acts)} asked, {len(result.ended)} ended, {len(result.final_of())} shown, "
            f"{result.loopback.rates.refused} × 429, {result.memory / 1e6:.0f} MB"
        )
        await asyncio.sleep(5.0)


def _measure_cpu(bot: Bot) -> dict[str, float]:
    """CPU seconds that the bot, the loopback with its members, the broker and the device have used."""
    used: dict[str, float] = {}
    for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        who = "bot" if one.pid == bot.pid else "loopback" if one.pid == os.getpid() else _process_role(one)
        times = one.cpu_times()
        used[who] = used.get(who, 0.0) + times.user + times.system
    return used


def _process_role(process: psutil.Process) -> str:
    return "broker" if "nats" in process.name() else "device"
