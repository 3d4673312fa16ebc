"""Measures how soon an idle system begins: from the request to the first step that a member could see.

The time runs from the call of the use case to the first preview in this process. It includes the transaction, dispatch,
claim, one step, its picture and the way back.
"""

from __future__ import annotations

import asyncio
import random
import time

from bot.bench.figures import Row, at, row
from bot.bench.premises import Premises, member
from bot.bench.watch import watching

ROUNDS, QUICK = 150, 20
STEPS = 40
ROW_MS = 0.5
P50, P99 = "enqueue → first step, idle, p50", "enqueue → first step, idle, p99"
NAMES = (P50, P99)


async def measure(here: Premises, database: str, *, quick: bool) -> list[Row]:
    """Run one job at a time, each after the end of the one before and a short pause."""
    await here.workers.start("worker", row_ms=ROW_MS)
    rounds = QUICK if quick else ROUNDS
    chance, waits, steps = random.Random(1), list[float](), list[float]()
    async with watching(here.house.feed) as watch:
        for number in range(3 + rounds):
            await asyncio.sleep(chance.uniform(0.02, 0.1))
            asked = time.monotonic()
            job = await here.imagine(f"a lamp --steps {STEPS} --count 1", member(number % 10))
            ended = await watch.end(job)
            if number >= 3:  # the first ones fill caches
                waits.append(1000 * (watch.shown.get(job, ended) - asked))  # without a preview: its end
                steps.append(watch.first.get(job, STEPS))
    note = f"{len(waits)} jobs; the first preview shows step {at(steps, 0.5):.0f} (p99 {at(steps, 0.99):.0f})"
    note += f", a forward takes {ROW_MS * 2 + 1:g} ms; slowest {at(waits, 1.0):.0f} ms"
    return [
        row(name, database, at(waits, share), note, samples=len(waits), of=rounds)
        for name, share in ((P50, 0.5), (P99, 0.99))
    ]
