"""How an OpenAI client and a Discord member share one worker, while both always have work."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp

from benchmarks.clients.openai_requests import STEPS, flood_by_openai
from benchmarks.queue.system.installation import BenchSystem, make_member
from benchmarks.queue.system.job_watch import JobWatch
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import jain_index
from bot.store import JobRecord
from bot.store.jobs import queries

JAIN_NAME = "an OpenAI client beside a Discord member: Jain's index by cost"
CONNECTIONS = 12  # of the client: more than run at once
MEMBER_JOBS = 400
WINDOW_SECONDS = 30.0
QUICK_SECONDS = 8.0
WARM_UP_SECONDS = 2.0


async def measure_fairness(
    client: aiohttp.ClientSession, system: BenchSystem, watch: JobWatch, *, quick: bool
) -> FigureRow:
    """Measure the device-seconds of both in a window."""
    member = make_member(1)
    member_jobs = {await system.imagine(f"a lamp --steps {STEPS} --count 1", member) for _ in range(MEMBER_JOBS)}
    flood = asyncio.create_task(flood_by_openai(client, CONNECTIONS))
    try:
        await asyncio.sleep(WARM_UP_SECONDS)
        before = await _measure_costs(system, watch, member_jobs)
        await asyncio.sleep(QUICK_SECONDS if quick else WINDOW_SECONDS)
        after = await _measure_costs(system, watch, member_jobs)
    finally:
        flood.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await flood
    costs = [end - start for start, end in zip(before, after, strict=True)]
    note = f"device-seconds: {costs[0]:.2f} of the client, {costs[1]:.2f} of the member"
    return FigureRow(JAIN_NAME, jain_index(costs), "≥ 0.99", "", note, sum(cost > 0 for cost in costs), 2)


async def _measure_costs(system: BenchSystem, watch: JobWatch, member_jobs: set[str]) -> tuple[float, float]:
    """Return the device-seconds so far of the client's jobs and of the member's: of running ones, by their step."""
    jobs = set(watch.latest_steps) | set(watch.ends)
    records = (await system.app.store.query(queries.get_jobs, sorted(jobs))).values()

    def add_up(wanted: list[JobRecord]) -> float:
        return sum(
            record.cost * (1.0 if record.state == "finished" else watch.latest_steps.get(record.id, 0) / record.steps)
            for record in wanted
        )

    of_member = [record for record in records if record.id in member_jobs]
    return add_up([record for record in records if record.id not in member_jobs]), add_up(of_member)
