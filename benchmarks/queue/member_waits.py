"""Measures what members wait for: the first step on an idle system, and a job beside another user's flood.

The first wait runs from the call of the use case to the first preview in this process. It includes the transaction,
dispatch, claim, one step, its picture and the way back. A flood is one user with eighty jobs, beside one light user or
nine. There is one simulated worker. Its device time is linear in the rows of a forward. So its calibration keeps
batches small, and a share of the steps is a share of the device.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time

from benchmarks.queue.figures import make_row
from benchmarks.queue.system.installation import BenchSystem, JobWatch, make_member, watch_jobs
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import jain_index, percentile

ROUNDS = 150
QUICK_ROUNDS = 20
STEPS = 40
ROW_MS = 0.5
P50_NAME = "enqueue → first step, idle, p50"
P99_NAME = "enqueue → first step, idle, p99"
LATENCY_NAMES = (P50_NAME, P99_NAME)


async def measure_latency(system: BenchSystem, *, quick: bool) -> list[FigureRow]:
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
                first_preview_time = watch.first_preview_times.get(job, end_time)
                waits.append(1000 * (first_preview_time - request_time))
                first_steps.append(watch.first_steps.get(job, STEPS))
    note = (
        f"{len(waits)} jobs; the first preview shows step {percentile(first_steps, 0.5):.0f} (p99 "
        f"{percentile(first_steps, 0.99):.0f}), a forward takes {ROW_MS * 2 + 1:g} ms; slowest "
        f"{percentile(waits, 1.0):.0f} ms"
    )
    quantiles = {P50_NAME: 0.5, P99_NAME: 0.99}
    return [make_row(name, percentile(waits, each), note, len(waits), rounds) for name, each in quantiles.items()]


FLOOD_JOBS = 80
FLOOD_ROW_MS = 2.0
# 8 rows each, with guidance
LONG_PROMPT = "a lamp --steps 100 --count 4"
SHORT_PROMPT = "a lamp --steps 20 --count 4"
FLOOD_ROUNDS = 5
QUICK_FLOOD_ROUNDS = 1
WINDOW_SECONDS = 25.0
QUICK_SECONDS = 8.0
LIGHT_USERS = 9
JOBS_PER_USER = 40
FIRST_STEP_NAME = "a flood and nine others: a light user's first step"
FINISH_NAME = "a flood and one other: a light user's finish ÷ alone"
JAIN_NAME = "a flood and nine others: Jain's index by cost"
FLOOD_NAMES = (FINISH_NAME, FIRST_STEP_NAME, JAIN_NAME)


async def measure_flood_beside_one_user(system: BenchSystem, *, quick: bool) -> list[FigureRow]:
    """Compare a light user's job alone with the same job beside a flood."""
    rounds = QUICK_FLOOD_ROUNDS if quick else FLOOD_ROUNDS
    await system.workers.start("worker", row_ms=FLOOD_ROW_MS)
    async with watch_jobs(system.app.feed) as watch:
        alone_seconds = [await _time_job(system, watch, 1000 + number) for number in range(rounds)]
        await _start_flood(system, watch)
        beside_seconds = [await _time_job(system, watch, 2000 + number) for number in range(rounds)]
    beside = statistics.median(beside_seconds)
    alone = statistics.median(alone_seconds)
    note = f"{beside:.2f} s beside {alone:.2f}; medians of {rounds}, worst {max(beside_seconds):.2f} s"
    return [make_row(FINISH_NAME, beside / alone, note, len(beside_seconds), rounds)]


async def measure_flood_beside_nine_users(system: BenchSystem, *, quick: bool) -> list[FigureRow]:
    """Add nine light users to a flood; all ten have work throughout the measurement."""
    await system.workers.start("worker", row_ms=FLOOD_ROW_MS)
    async with watch_jobs(system.app.feed) as watch:
        flood_jobs = await _start_flood(system, watch, SHORT_PROMPT)
        request_time = time.monotonic()
        cost_before = await system.measure_cost(watch, flood_jobs)
        users = range(1, LIGHT_USERS + 1)
        first_jobs = await asyncio.gather(*(system.imagine(SHORT_PROMPT, make_member(number)) for number in users))
        jobs = {number: [job] for number, job in zip(users, first_jobs, strict=True)}
        for number in [*users] * (JOBS_PER_USER - 1):
            jobs[number].append(await system.imagine(SHORT_PROMPT, make_member(number)))
        await asyncio.sleep(max(0.0, request_time + (QUICK_SECONDS if quick else WINDOW_SECONDS) - time.monotonic()))
        flood_cost = await system.measure_cost(watch, flood_jobs) - cost_before
        costs = [await system.measure_cost(watch, user_jobs) for user_jobs in jobs.values()]
    waits = [watch.first_preview_times[job] - request_time for job in first_jobs if job in watch.first_preview_times]
    slowest = f"p50 {percentile(waits, 0.5):.2f} s, slowest {max(waits, default=0.0):.2f} s"
    cost_note = f"device-seconds of the flood {flood_cost:.1f}, of the others {min(costs):.1f} to {max(costs):.1f}"
    served_count = sum(cost > 0 for cost in (flood_cost, *costs))
    note = f"of {len(waits)} of {LIGHT_USERS}: {slowest}"
    return [
        make_row(FIRST_STEP_NAME, percentile(waits, 1.0), note, len(waits), LIGHT_USERS),
        make_row(JAIN_NAME, jain_index([flood_cost, *costs]), cost_note, served_count, LIGHT_USERS + 1),
    ]


async def _start_flood(system: BenchSystem, watch: JobWatch, prompt: str = LONG_PROMPT) -> list[str]:
    """Submit eighty jobs of one user, and wait until the first ones run."""
    jobs = [await system.imagine(prompt, make_member(0)) for _ in range(FLOOD_JOBS)]
    await watch.wait_until(lambda: any(job in watch.first_preview_times for job in jobs))
    await asyncio.sleep(1.0)
    return jobs


async def _time_job(system: BenchSystem, watch: JobWatch, user: int) -> float:
    """Return the seconds of one job of a user who has no other."""
    start_time = time.monotonic()
    return await watch.wait_for_end(await system.imagine(LONG_PROMPT, make_member(user))) - start_time
