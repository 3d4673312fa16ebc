"""Measures what a flood does to others: one user with eighty jobs, beside one light user or nine.

There is one simulated worker. Its device time is linear in the rows of a forward. So its calibration keeps batches
small, and a share of the steps is a share of the device.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.queue.figures import make_row, percentile
from benchmarks.queue.system.installation import BenchSystem, make_member
from benchmarks.queue.system.job_watch import JobWatch, watch_jobs
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import jain_index
from bot.store.jobs import queries

FLOOD_JOBS = 80
ROW_MS = 2.0
# 8 rows each, with guidance
LONG_PROMPT = "a lamp --steps 100 --count 4"
SHORT_PROMPT = "a lamp --steps 20 --count 4"
ROUNDS = 5
QUICK_ROUNDS = 1
WINDOW_SECONDS = 25.0
QUICK_SECONDS = 8.0
LIGHT_USERS = 9
JOBS_PER_USER = 40
FIRST_STEP_NAME = "a flood and nine others: a light user's first step"
FINISH_NAME = "a flood and one other: a light user's finish ÷ alone"
JAIN_NAME = "a flood and nine others: Jain's index by cost"
ROW_NAMES = (FINISH_NAME, FIRST_STEP_NAME, JAIN_NAME)


async def measure_flood_beside_one_user(system: BenchSystem, database: str, *, quick: bool) -> list[FigureRow]:
    """Compare a light user's job alone with the same job beside a flood."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    await system.workers.start("worker", row_ms=ROW_MS)
    async with watch_jobs(system.app.feed) as watch:
        alone_seconds = [await _time_job(system, watch, 1000 + number) for number in range(rounds)]
        await _start_flood(system, watch)
        beside_seconds = [await _time_job(system, watch, 2000 + number) for number in range(rounds)]
    beside = statistics.median(beside_seconds)
    alone = statistics.median(alone_seconds)
    note = f"{beside:.2f} s beside {alone:.2f}; medians of {rounds}, worst {max(beside_seconds):.2f} s"
    return [make_row(FINISH_NAME, database, beside / alone, note, samples=len(beside_seconds), expected=rounds)]


async def measure_flood_beside_nine_users(system: BenchSystem, database: str, *, quick: bool) -> list[FigureRow]:
    """Add nine light users to a flood; all ten have work throughout the measurement."""
    await system.workers.start("worker", row_ms=ROW_MS)
    async with watch_jobs(system.app.feed) as watch:
        flood_jobs = await _start_flood(system, watch, SHORT_PROMPT)
        request_time = time.monotonic()
        cost_before = await _measure_cost(system, watch, flood_jobs)
        first_jobs = await asyncio.gather(
            *(system.imagine(SHORT_PROMPT, make_member(number)) for number in range(1, LIGHT_USERS + 1))
        )
        jobs = {number: [job] for number, job in enumerate(first_jobs, start=1)}
        for number in [*jobs] * (JOBS_PER_USER - 1):
            jobs[number].append(await system.imagine(SHORT_PROMPT, make_member(number)))
        await asyncio.sleep(max(0.0, request_time + (QUICK_SECONDS if quick else WINDOW_SECONDS) - time.monotonic()))
        costs = [await _measure_cost(system, watch, flood_jobs) - cost_before]
        costs += [await _measure_cost(system, watch, user_jobs) for user_jobs in jobs.values()]
    waits = [watch.first_preview_times[job] - request_time for job in first_jobs if job in watch.first_preview_times]
    return _build_nine_rows(database, waits, costs)


def _build_nine_rows(database: str, waits: list[float], costs: list[float]) -> list[FigureRow]:
    """Return the rows of the light users' waits and of all users' costs, the flood's first."""
    wait_note = f"of {len(waits)} of {LIGHT_USERS}: p50 {percentile(waits, 0.5):.2f} s, slowest"
    cost_note = f"device-seconds of the flood {costs[0]:.1f}, of the others {min(costs[1:]):.1f} to"
    return [
        make_row(
            FIRST_STEP_NAME,
            database,
            percentile(waits, 1.0),
            f"{wait_note} {max(waits, default=0.0):.2f} s",
            samples=len(waits),
            expected=LIGHT_USERS,
        ),
        make_row(
            JAIN_NAME,
            database,
            jain_index(costs),
            f"{cost_note} {max(costs[1:]):.1f}",
            samples=sum(cost > 0 for cost in costs),
            expected=LIGHT_USERS + 1,
        ),
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


async def _measure_cost(system: BenchSystem, watch: JobWatch, jobs: list[str]) -> float:
    """Return the device-seconds of these jobs so far: of running ones, by the newest step in a preview."""
    records = (await system.app.store.query(queries.get_jobs, jobs)).values()
    return sum(
        record.cost * (1.0 if record.state == "finished" else watch.latest_steps.get(record.id, 0) / record.steps)
        for record in records
    )
