"""A heavy load: a thousand watched jobs in 200 channels of 50 guilds, and the outcome of each.

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

from engine.bus.embedded_broker import Broker
from tools.loopback.bot_process import Bot, create_bot
from tools.loopback.faults import Faults
from tools.loopback.members import Act, Person
from tools.loopback.recorded_request import RecordedRequest
from tools.loopback.server import Loopback
from tools.loopback.simulated_workers import WORKERS

# seconds: above a minute the bot announces a job's end with a new message
SHORT = 52.0
LONG = 64.0
RATE = 20.0  # requests for pictures a second
JOB = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
WORKERS_TIMEOUT = 30.0  # seconds for the bot to see the device
HIGH_LIMITS = {"DARKROOM_RUNNING": "1000", "DARKROOM_QUEUED": "1000", "DARKROOM_COST_DAY": "1000000"}


@dataclass(frozen=True)
class LoadSize:
    """The size of a load."""

    jobs: int = 1000
    channels: int = 200
    guilds: int = 50
    short_seconds: float = SHORT
    long_seconds: float = LONG
    finals_per_second: float = RATE  # a second, at most
    duplicate_wait: float = 3.0  # seconds in which a duplicate would arrive


@dataclass
class LoadResult:
    """The measurements of one load."""

    size: LoadSize
    loopback: Loopback
    acts: list[Act] = field(default_factory=list)
    ended_at: dict[str, float] = field(default_factory=dict)  # job → when its device finished
    stored_at: dict[str, float] = field(default_factory=dict)  # job → when the bot stored the end
    memory: int = 0  # bytes at most
    cpu: dict[str, float] = field(default_factory=dict)  # process → seconds of a core
    seconds: float = 0.0  # wall time, from the first request to the last final

    def group_finals_by_job(self) -> dict[str, list[RecordedRequest]]:
        """The requests that carried a job's finished picture."""
        requests_by_job: dict[str, list[RecordedRequest]] = defaultdict(list)
        for one in self.loopback.requests:
            if one.files and one.files[0].filename.startswith("darkroom-") and one.status == 200:
                requests_by_job[one.files[0].filename[9:35]].append(one)
        return requests_by_job

    def group_previews_by_job(self) -> dict[str, list[RecordedRequest]]:
        """The requests that carried a job's frames."""
        requests_by_job: dict[str, list[RecordedRequest]] = defaultdict(list)
        for one in self.loopback.requests:
            if one.files and one.files[0].filename == "developing.jpg" and (match := JOB.search(str(one.body))):
                requests_by_job[match[0]].append(one)
        return requests_by_job


@asynccontextmanager
async def run_device(broker: Broker, size: LoadSize, ended_at: dict[str, float]) -> AsyncIterator[None]:
    """Runs the simulated device for as long as the context lasts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools.loopback.simulated_workers",
        broker.url,
        str(size.short_seconds),
        str(size.long_seconds),
        str(size.finals_per_second),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "DARKROOM_NATS_TOKEN": broker.token},
    )
    reader = asyncio.create_task(_read_ends(process, ended_at))
    try:
        yield
    finally:
        process.kill()
        await process.wait()
        await reader


async def _read_ends(process: asyncio.subprocess.Process, ended_at: dict[str, float]) -> None:
    assert process.stdout
    async for line in process.stdout:
        report = json.loads(line)
        ended_at[report["job"]] = report["at"]


async def run_load(
    folder: Path,
    size: LoadSize,
    report: Callable[[str], None],
    order_faults: Callable[[Faults], object] = lambda faults: None,
) -> LoadResult:
    """Runs until every final is shown, or nothing new arrives for long. `order_faults` orders faults."""
    loopback = Loopback(clock=time.monotonic, validates=False)
    order_faults(loopback.faults)
    result = LoadResult(size, loopback)
    guilds = [loopback.world.create_guild(f"guild {number}") for number in range(size.guilds)]
    channels = [
        guilds[number % size.guilds].create_text_channel(f"pictures-{number}") for number in range(size.channels)
    ]
    people = [
        Person(loopback, f"member {number}", guilds[number % size.channels % size.guilds], answer_timeout=30.0)
        for number in range(size.jobs)
    ]
    async with loopback.open(), create_bot(loopback, folder, **HIGH_LIMITS) as (bot, _):
        async with run_device(bot.broker, size, result.ended_at):
            await bot.start()
            await _wait_for_workers(bot)
            before = _measure_cpu(bot)
            started_at = time.monotonic()
            reporter = asyncio.create_task(_report_progress(bot, result, report))
            try:
                await _send_commands(people, channels, result)
                await _wait_for_finals(result)
            finally:
                reporter.cancel()
            result.seconds = time.monotonic() - started_at
            result.cpu = {role: cpu_seconds - before.get(role, 0.0) for role, cpu_seconds in _measure_cpu(bot).items()}
        await bot.stop()
    result.stored_at = await asyncio.to_thread(_read_store_times, folder / "bot" / "darkroom.sqlite")
    return result


async def _wait_for_workers(bot: Bot) -> None:
    """Waits until the bot sees every worker of the device; without them there is nothing to measure."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(WORKERS_TIMEOUT):
        while True:
            async with session.get(f"{bot.find_page_url()}/healthz") as answer:
                if (await answer.json())["workers"] == len(WORKERS):
                    return
            await asyncio.sleep(0.1)


def _read_store_times(database: Path) -> dict[str, float]:
    """When each job ended by the bot's store, on the monotonic clock."""
    with closing(sqlite3.connect(database)) as store:
        rows = store.execute("SELECT id, ended FROM jobs WHERE ended IS NOT NULL").fetchall()
    shift = time.monotonic() - time.time()
    return {job: ended_at + shift for job, ended_at in rows}


async def _send_commands(people: list[Person], channels: list, result: LoadResult) -> None:
    """Each member sends one command, at an even pace."""
    started_at = time.monotonic()
    for number, person in enumerate(people):
        await asyncio.sleep(max(0.0, started_at + number / RATE - time.monotonic()))
        channel = channels[number % len(channels)]
        result.acts.append(await person.slash(channel, "imagine", prompt=f"red apple {number}"))


async def _wait_for_finals(result: LoadResult) -> None:
    """Waits until every job's picture is there, or nothing new arrived for 90 seconds."""
    last_change_at = time.monotonic()
    known_count = -1
    while known_count < result.size.jobs and time.monotonic() - last_change_at < 90.0:
        await asyncio.sleep(0.5)
        count = len(result.group_finals_by_job())
        if count != known_count:
            known_count = count
            last_change_at = time.monotonic()
    await asyncio.sleep(result.size.duplicate_wait)


async def _report_progress(bot: Bot, result: LoadResult, report: Callable[[str], None]) -> None:
    while True:
        result.memory = max(result.memory, await asyncio.to_thread(bot.measure_memory))
        report(
            f"{len(result.acts)} requested, {len(result.ended_at)} ended, {len(result.group_finals_by_job())} shown, "
            f"{result.loopback.rates.refused_count} × 429, {result.memory / 1e6:.0f} MB"
        )
        await asyncio.sleep(5.0)


def _measure_cpu(bot: Bot) -> dict[str, float]:
    """CPU seconds that the bot, the loopback with its members, the broker and the device have used."""
    cpu_seconds: dict[str, float] = {}
    for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        role = "bot" if one.pid == bot.pid else "loopback" if one.pid == os.getpid() else _process_role(one)
        times = one.cpu_times()
        cpu_seconds[role] = cpu_seconds.get(role, 0.0) + times.user + times.system
    return cpu_seconds


def _process_role(process: psutil.Process) -> str:
    return "broker" if "nats" in process.name() else "device"
