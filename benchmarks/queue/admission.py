"""Measures jobs admitted a second, through the real use case, rules and quota check, and whether their order is fair.

Members send requests concurrently, each again after its answer. One busy worker is online, so nearly all jobs wait.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator

from benchmarks.queue.figures import make_row, pick_spread
from benchmarks.queue.system.installation import BenchSystem, make_member
from benchmarks.report.figure_row import FigureRow
from bot.store import PickRequest
from bot.store.jobs import queries
from bot.store.jobs.records import Transition

USERS = 100
GUILDS = 10
CONCURRENT_REQUESTS = 64
WINDOW_SECONDS = 10.0
QUICK_SECONDS = 2.0
PROMPT = "a lamp --steps 1000 --count 4"
FAIRNESS_NAME = "accepted jobs: most jobs of one user beyond another's in the next picks"
RATE_NAME = "accepted jobs a second"
ROW_NAMES = (RATE_NAME, FAIRNESS_NAME)
ROW_LIMIT = 1_000_000


async def measure(system: BenchSystem, database: str, *, quick: bool) -> list[FigureRow]:
    """Measure rate and fairness. All admitted jobs stay in the queue."""
    await system.workers.start("worker", row_ms=50.0, rows=8)
    counter = itertools.count()
    await _submit_until(system, counter, time.monotonic() + 0.5)
    count_before = next(counter)
    start_time = time.monotonic()
    cpu_before = time.process_time()
    end_time = start_time + (QUICK_SECONDS if quick else WINDOW_SECONDS)
    await asyncio.gather(*(_submit_until(system, counter, end_time) for _ in range(CONCURRENT_REQUESTS)))
    seconds = time.monotonic() - start_time
    admitted = next(counter) - count_before - 1
    cpu_share = (time.process_time() - cpu_before) / seconds
    picked_members = await _pick_members(system)
    note = (
        f"{admitted} jobs in {seconds:.1f} s, {CONCURRENT_REQUESTS} requests at a time, {USERS} users in {GUILDS} "
        f"servers; the bot had {cpu_share:.2f} of a core"
    )
    return [
        make_row(RATE_NAME, database, admitted / seconds, note, samples=admitted, expected=USERS),
        make_row(
            FAIRNESS_NAME,
            database,
            pick_spread(picked_members, USERS),
            f"of {len(picked_members)} picks",
            samples=len(picked_members),
            expected=USERS,
        ),
    ]


async def _submit_until(system: BenchSystem, counter: Iterator[int], end_time: float) -> None:
    while time.monotonic() < end_time:
        number = next(counter) % USERS
        await system.imagine(PROMPT, make_member(number, number % GUILDS))


async def _pick_members(system: BenchSystem) -> list[str]:
    """Return the members who are served first, as many as there are users.

    First come those whose jobs the worker had. When the worker has gone and nobody else dispatches, we pick the others.
    """
    system.workers.stop("worker")
    await system.workers.wait_for_end("worker")
    async with asyncio.timeout(60):
        while system.bus.workers:
            await asyncio.sleep(0.1)
    members = [record.member for record in await system.app.store.query(queries.list_active)]
    while len(members) < USERS and (transition := await _pick_job(system)) is not None:
        members.append(transition.record.member)
    return members


async def _pick_job(system: BenchSystem) -> Transition | None:
    pick_request = PickRequest("default", ["simulated"], member_limit=ROW_LIMIT)
    return await system.app.store.pick_job(pick_request, ROW_LIMIT, 0.0, time.time())
