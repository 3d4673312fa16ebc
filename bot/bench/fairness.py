"""Measures what a flood does to others: one user with eighty jobs, beside one light user or nine.

There is one simulated worker. Its device time is linear in the rows of a forward. So its calibration keeps batches
small, and a share of the steps is a share of the device.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from bot.bench.figures import Row, at, jain, row
from bot.bench.premises import Premises, member
from bot.bench.watch import Watch, watching
from bot.store import reads

FLOOD = 80
ROW_MS = 2.0
LONG, SHORT = "a lamp --steps 100 --count 4", "a lamp --steps 20 --count 4"  # 8 rows each, with guidance
ROUNDS, QUICK = 5, 1
SECONDS, FEW_SECONDS = 25.0, 8.0
LIGHT, JOBS_EACH = 9, 40
SOON = "a flood and nine others: a light user's first step"
FINISH = "a flood and one other: a light user's finish ÷ alone"
JAIN = "a flood and nine others: Jain's index by cost"
NAMES = (FINISH, SOON, JAIN)


async def beside_one(here: Premises, database: str, *, quick: bool) -> list[Row]:
    """Compare a light user's job alone with the same job beside a flood."""
    rounds = QUICK if quick else ROUNDS
    await here.workers.start("worker", row_ms=ROW_MS)
    async with watching(here.house.feed) as watch:
        alone = [await _finish(here, watch, 1000 + number) for number in range(rounds)]
        await _flood(here, watch)
        beside = [await _finish(here, watch, 2000 + number) for number in range(rounds)]
    share = statistics.median(beside) / statistics.median(alone)
    note = f"{statistics.median(beside):.2f} s beside {statistics.median(alone):.2f}; medians of {rounds}, worst"
    return [row(FINISH, database, share, f"{note} {max(beside):.2f} s", samples=len(beside), of=rounds)]


async def beside_nine(here: Premises, database: str, *, quick: bool) -> list[Row]:
    """Add nine light users to a flood; all ten have work throughout the measurement."""
    await here.workers.start("worker", row_ms=ROW_MS)
    async with watching(here.house.feed) as watch:
        flood = await _flood(here, watch, SHORT)
        asked = time.monotonic()
        before = await _cost(here, watch, flood)
        firsts = await asyncio.gather(*(here.imagine(SHORT, member(number)) for number in range(1, LIGHT + 1)))
        jobs = {number: [job] for number, job in enumerate(firsts, start=1)}
        for number in [*jobs] * (JOBS_EACH - 1):
            jobs[number].append(await here.imagine(SHORT, member(number)))
        await asyncio.sleep(max(0.0, asked + (FEW_SECONDS if quick else SECONDS) - time.monotonic()))
        had = [await _cost(here, watch, flood) - before]
        had += [await _cost(here, watch, each) for each in jobs.values()]
    waits = [watch.shown[job] - asked for job in firsts if job in watch.shown]
    told = f"of {len(waits)} of {LIGHT}: p50 {at(waits, 0.5):.2f} s, slowest {max(waits, default=0.0):.2f} s"
    shared = f"device-seconds of the flood {had[0]:.1f}, of the others {min(had[1:]):.1f} to {max(had[1:]):.1f}"
    return [
        row(SOON, database, at(waits, 1.0), told, samples=len(waits), of=LIGHT),
        row(JAIN, database, jain(had), shared, samples=sum(one > 0 for one in had), of=LIGHT + 1),
    ]


async def _flood(here: Premises, watch: Watch, prompt: str = LONG) -> list[str]:
    """Submit eighty jobs of one user, and wait until the first ones run."""
    jobs = [await here.imagine(prompt, member(0)) for _ in range(FLOOD)]
    await watch.until(lambda: any(job in watch.shown for job in jobs))
    await asyncio.sleep(1.0)
    return jobs


async def _finish(here: Premises, watch: Watch, user: int) -> float:
    """Return the seconds of one job of a user who has no other."""
    asked = time.monotonic()
    return await watch.end(await here.imagine(LONG, member(user))) - asked


async def _cost(here: Premises, watch: Watch, jobs: list[str]) -> float:
    """Return the device-seconds of these jobs so far: of running ones, by the newest step in a preview."""
    found = (await here.house.store.ask(reads.some, jobs)).values()
    return sum(one.cost * (1.0 if one.state == "finished" else watch.step.get(one.id, 0) / one.steps) for one in found)
