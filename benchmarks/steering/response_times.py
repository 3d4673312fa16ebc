"""Measures how soon a running picture follows a press: the step, and the frame on the page.

A press is a request over HTTP. Its answer says from which step on the change holds; the worker gives it once that step
is next, and the page hears of it. So the answer's arrival is later than the begin of the step, if anything.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from random import Random

from benchmarks.queue.figures import percentile
from benchmarks.report.figure_row import FigureRow
from benchmarks.steering.page_reader import PageReader
from benchmarks.steering.running_jobs import JOBS, RunningJobs

PRESSES = 120
QUICK_PRESSES = 12
STEP_NAME = "press → the first step that follows, p99 ÷ (one step + 50 ms)"
FRAME_NAME = "press → the first frame that shows it on the page, p99"
ROW_NAMES = (STEP_NAME, FRAME_NAME)
ALLOWANCE_SECONDS = 0.05
TIMEOUT_SECONDS = 30.0  # after which a press counts as never followed
PAUSE_SECONDS = (0.05, 0.5)  # between two presses: at any moment of a step


@dataclass(frozen=True)
class Response:
    """The seconds from a press until its step is next, and until the page has a frame that shows it."""

    step_seconds: float
    frame_seconds: float


async def measure_responses(jobs: RunningJobs, rng: Random, *, quick: bool) -> list[FigureRow]:
    """Press again and again, each time on another of the running jobs."""
    planned = QUICK_PRESSES if quick else PRESSES
    responses = list[Response]()
    start = time.monotonic()
    for _ in range(planned):
        await jobs.fill()
        await asyncio.sleep(rng.uniform(*PAUSE_SECONDS))
        response = await _press(jobs, jobs.reader)
        if response is not None:
            responses.append(response)
    paces = [jobs.reader.measure_pace(job, start, time.monotonic()) for job in jobs.changes]
    return build_rows(responses, [1 / pace for pace in paces if pace], planned)


async def _press(jobs: RunningJobs, reader: PageReader) -> Response | None:
    job = jobs.choose_job()
    start = time.monotonic()
    number = await jobs.steer(job)
    if number is None or not await reader.wait_until(lambda: (job, number) in reader.answers, TIMEOUT_SECONDS):
        return None
    answered_at, step = reader.answers[job, number]
    if step is None or not await reader.wait_until(
        lambda: reader.find_frame_after(job, step) is not None, TIMEOUT_SECONDS
    ):
        return None
    return Response(answered_at - start, (reader.find_frame_after(job, step) or start) - start)


def build_rows(responses: list[Response], step_times: list[float], planned: int) -> list[FigureRow]:
    """Return the rows. `step_times`: seconds of a step of each job."""
    step_seconds = statistics.median(step_times) if step_times else 0.0
    waits = [each.step_seconds for each in responses]
    frames = [each.frame_seconds for each in responses]
    slowest = percentile(waits, 0.99)
    note = (
        f"{JOBS} jobs run, a step takes {1000 * step_seconds:.0f} ms; p50 {1000 * percentile(waits, 0.5):.0f} ms, "
        f"p99 {1000 * slowest:.0f} ms until the page has the answer"
    )
    counts = {"samples": len(responses) if step_times else 0, "planned": planned}
    ratio = slowest / (step_seconds + ALLOWANCE_SECONDS)
    return [
        FigureRow(STEP_NAME, ratio, "≤ 1", "", note, **counts),
        FigureRow(
            FRAME_NAME,
            percentile(frames, 0.99),
            "≤ 0.5",
            "s",
            f"p50 {percentile(frames, 0.5):.2f} s; {JOBS} jobs on the page",
            **counts,
        ),
    ]
