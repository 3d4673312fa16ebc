"""Measures what steering costs: the steps a second of eight jobs, each changed once a second, against none.

Windows with and without changes take turns on the same jobs, in an order that evens out a slow drift.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.report.figure_row import FigureRow
from benchmarks.steering.running_jobs import JOBS, RunningJobs

THROUGHPUT_NAME = "throughput, every job steered once a second ÷ none"
ORDER = (False, True, True, False, False, True)  # whether a window has changes
QUICK_ORDER = (False, True)
WINDOW_SECONDS = 16.0
QUICK_SECONDS = 10.0


async def measure_steered_throughput(jobs: RunningJobs, *, quick: bool) -> FigureRow:
    """Compare the windows' sums of steps a second."""
    await jobs.clear()
    paces: dict[bool, list[float]] = {False: [], True: []}
    asked_count = 0
    order = QUICK_ORDER if quick else ORDER
    seconds = QUICK_SECONDS if quick else WINDOW_SECONDS
    for is_steered in order:
        await jobs.fill()
        start = time.monotonic()
        if is_steered:
            asked_count += await jobs.steer_all(seconds)
        await asyncio.sleep(start + seconds - time.monotonic())
        paces[is_steered] += _measure_paces(jobs, start, start + seconds)
    return build_row(paces[True], paces[False], asked_count, len(order) * JOBS)


def _measure_paces(jobs: RunningJobs, start: float, end: float) -> list[float]:
    paces = (jobs.reader.measure_pace(job, start, end) for job in jobs.changes)
    return [pace for pace in paces if pace is not None]


def build_row(steered: Sequence[float], unsteered: Sequence[float], asked_count: int, planned: int) -> FigureRow:
    """Return the row of the jobs' steps a second with and without changes, one for each job and window."""
    rates = [sum(paces) / max(1, len(paces)) * JOBS for paces in (steered, unsteered)]
    note = f"{rates[0]:.1f} ÷ {rates[1]:.1f} steps a second of {JOBS} jobs; {asked_count} changes"
    samples = len(steered) + len(unsteered) if steered and unsteered else 0
    ratio = rates[0] / rates[1] if rates[1] else None
    return FigureRow(THROUGHPUT_NAME, ratio, "≥ 0.95", "×", note, samples, planned)
