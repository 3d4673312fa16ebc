"""Measures how soon an idle system begins: from the request to the first step that a member could see.

The time runs from the call of the use case to the first preview in this process. It includes the transaction, dispatch,
claim, one step, its picture and the way back.
"""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks.queue.figures import make_row, percentile
from benchmarks.queue.system.installation import BenchSystem, make_member
from benchmarks.queue.system.job_watch import watch_jobs
from benchmarks.report.figure_row import FigureRow

ROUNDS = 150
QUICK_ROUNDS = 20
STEPS = 40
ROW_MS = 0.5
P50_NAME = "enqueue → first step, idle, p50"
P99_NAME = "enqueue → first step, idle, p99"
ROW_NAMES = (P50_NAME, P99_NAME)


async def measure(system: BenchSystem, database: str, *, quick: bool) -> list[FigureRow]:
    """Run one job at a time, each after the end of the one before and a short pause."""
    await system.workers.start("worker", row_ms=ROW_MS)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    rng = random.Random(1)
    waits = list[float]()
    first_steps = list[float]()
    async with watch_jobs(system.app.feed) as watch:
        for number in range(3 + rounds):
            await asyncio.sleep(rng.uniform(0.02, 0.1))
            request_time = time.monotonic()
            job = await system.imagine(f"a lamp --steps {STEPS} --count 1", make_member(number % 10))
            end_time = await watch.wait_for_end(job)
            if number >= 3:  # the first ones fill caches
                waits.append(
                    1000 * (watch.first_preview_times.get(job, end_time) - request_time)
                )  # without a preview: its end
                first_steps.append(watch.first_steps.get(job, STEPS))
    note = (
        f"{len(waits)} jobs; the first preview shows step {percentile(first_steps, 0.5):.0f} (p99 "
        f"{percentile(first_steps, 0.99):.0f})"
    )
    note += f", a forward takes {ROW_MS * 2 + 1:g} ms; slowest {percentile(waits, 1.0):.0f} ms"
    return [
        make_row(name, database, percentile(waits, quantile), note, samples=len(waits), expected=rounds)
        for name, quantile in ((P50_NAME, 0.5), (P99_NAME, 0.99))
    ]
