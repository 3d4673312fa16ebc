"""Measures jobs admitted a second, through the real use case, rules and quota check, and whether their order is fair.

Members ask concurrently, each again after its answer. One busy worker is online, so nearly all jobs wait.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator

from bot.bench.figures import Row, row, shared_out
from bot.bench.premises import Premises, member
from bot.store import Wish, reads
from bot.store.records import Moved

USERS, GUILDS = 100, 10
AT_ONCE = 64
SECONDS, QUICK = 10.0, 2.0
PROMPT = "a lamp --steps 1000 --count 4"
FAIR = "accepted jobs: most jobs of one user beyond another's in the next picks"
RATE = "accepted jobs a second"
NAMES = (RATE, FAIR)
ROOM = 1_000_000


async def measure(here: Premises, database: str, *, quick: bool) -> list[Row]:
    """Measure rate and fairness. All admitted jobs stay in the queue."""
    await here.workers.start("worker", row_ms=50.0, rows=8)
    asking = itertools.count()
    await _ask(here, asking, time.monotonic() + 0.5)
    before, began, spent = next(asking), time.monotonic(), time.process_time()
    await asyncio.gather(*(_ask(here, asking, began + (QUICK if quick else SECONDS)) for _ in range(AT_ONCE)))
    seconds, taken = time.monotonic() - began, next(asking) - before - 1
    busy = (time.process_time() - spent) / seconds
    note = f"{taken} jobs in {seconds:.1f} s, {AT_ONCE} requests at a time, {USERS} users in {GUILDS} servers"
    picked = await _picked(here)
    return [
        row(RATE, database, taken / seconds, f"{note}; the bot had {busy:.2f} of a core", samples=taken, of=USERS),
        row(FAIR, database, shared_out(picked, USERS), f"of {len(picked)} picks", samples=len(picked), of=USERS),
    ]


async def _ask(here: Premises, asking: Iterator[int], until: float) -> None:
    while time.monotonic() < until:
        number = next(asking) % USERS
        await here.imagine(PROMPT, member(number, number % GUILDS))


async def _picked(here: Premises) -> list[str]:
    """Return the members who are served first, as many as there are users.

    First come those whose jobs the worker had. Then we pick, once the worker has gone and nobody else dispatches.
    """
    here.workers.stop("worker")
    await here.workers.gone("worker")
    async with asyncio.timeout(60):
        while here.bus.workers:
            await asyncio.sleep(0.1)
    found = [one.member for one in await here.house.store.ask(reads.active)]
    while len(found) < USERS and (moved := await _pick(here)) is not None:
        found.append(moved.record.member)
    return found


async def _pick(here: Premises) -> Moved | None:
    wish = Wish("default", ["simulated"], running=ROOM)
    return await here.house.store.pick(wish, ROOM, 0.0, time.time())
