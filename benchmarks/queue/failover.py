"""Measures a job that changes its worker, because the first one was killed, or shut down in order.

Another worker is warm and idle beside it. The steps in previews before and after tell how much work is repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.queue.figures import make_row
from benchmarks.queue.system.installation import BenchSystem, make_member, watch_jobs
from benchmarks.report.figure_row import FigureRow
from benchmarks.report.measures import percentile
from bot.store.jobs import queries
from engine.bus import Bus

ROW_MS = 8.0  # 17 ms a step of one picture with guidance
PROMPT = "a lamp --steps 1000 --evaluations all --count 1 --sampler ddpm"
KILL_ROUNDS = 3
STOP_ROUNDS = 5
QUICK_ROUNDS = 1
WORK_SECONDS = 3.5  # seconds of work before the worker ends: the first snapshot comes after two
TIMEOUT_SECONDS = 60.0
KILL_NAME = "worker killed → its job resumes elsewhere"
REPEAT_NAME = "worker killed: its work repeated"
STOP_NAME = "worker stopped in order → its job resumes elsewhere"
ROW_NAMES = (KILL_NAME, REPEAT_NAME, STOP_NAME)


@dataclass(frozen=True)
class Failover:
    """Seconds until the next worker's first step was seen, and the seconds of repeated work."""

    wait_seconds: float
    repeated_seconds: float


class PreviewWatch:
    """The newest preview of any job: its epoch, its step and its time."""

    def __init__(self) -> None:
        self.epoch = 0
        self.step = 0
        self.preview_time = 0.0
        self.epoch_start = 0.0

    async def follow(self, bus: Bus) -> None:
        async for frame in bus.watch_frames():
            now = time.monotonic()
            if frame.epoch != self.epoch:
                self.epoch_start = now
            self.epoch = frame.epoch
            self.step = frame.step
            self.preview_time = now


async def measure(system: BenchSystem, *, quick: bool) -> list[FigureRow]:
    """Measure some kills and some orderly stops, each with its own job and two workers."""
    async with _watch_previews(system) as previews, watch_jobs(system.app.feed):
        rounds = (QUICK_ROUNDS, QUICK_ROUNDS) if quick else (KILL_ROUNDS, STOP_ROUNDS)
        stops = [await _measure_failover(system, previews, f"stop-{n}", kill=False) for n in range(rounds[1])]
        kills = [await _measure_failover(system, previews, f"kill-{n}", kill=True) for n in range(rounds[0])]
    return build_rows(kills, stops, rounds)


def build_rows(kills: Sequence[Failover], stops: Sequence[Failover], rounds: tuple[int, int]) -> list[FigureRow]:
    """Return the rows. A goal holds for every round, so the figure is the worst one. `rounds`: planned kills, stops."""
    most_repeated = percentile([each.repeated_seconds for each in stops], 1.0)
    figures = (
        (KILL_NAME, [each.wait_seconds for each in kills], rounds[0], "until its first new preview"),
        (REPEAT_NAME, [each.repeated_seconds for each in kills], rounds[0], ""),
        (STOP_NAME, [each.wait_seconds for each in stops], rounds[1], f"work repeated at most {most_repeated:.2f} s"),
    )
    rows = list[FigureRow]()
    for name, seconds, planned, remark in figures:
        note = f"the worst of {len(seconds)}, median {percentile(seconds, 0.5):.2f} s"
        rows.append(
            make_row(name, percentile(seconds, 1.0), "; ".join(filter(None, (note, remark))), len(seconds), planned)
        )
    return rows


async def _measure_failover(system: BenchSystem, previews: PreviewWatch, name: str, *, kill: bool) -> Failover:
    workers = (f"{name}-a", f"{name}-b")
    for worker in workers:  # both before the job: on a busy machine a worker may need longer to start than the job runs
        await system.workers.start(worker, row_ms=ROW_MS)
    old_epoch = previews.epoch
    job = await system.imagine(PROMPT, make_member(0))
    await _wait_until(lambda: previews.epoch != old_epoch)
    await asyncio.sleep(max(0.0, previews.epoch_start + WORK_SECONDS - time.monotonic()))
    first_worker = (await system.app.store.query(queries.get_jobs, [job]))[job].worker
    epoch = previews.epoch
    end_time = time.monotonic()
    last_step = previews.step
    if kill:
        await system.workers.kill(first_worker)
    else:
        system.workers.stop(first_worker)
    while previews.epoch == epoch:
        last_step = previews.step
        await _wait_for_preview(previews)
    wait_seconds = previews.epoch_start - end_time
    repeated_seconds = max(0, last_step - previews.step + 1) * (2 * ROW_MS + 1) / 1000
    await system.app.services.job_control.cancel(job, make_member(0))
    for worker in workers:  # none works in the next round
        if kill and worker == first_worker:
            continue
        system.workers.stop(worker)
        await system.workers.wait_for_end(worker)
    return Failover(wait_seconds, repeated_seconds)


async def _wait_for_preview(previews: PreviewWatch) -> None:
    """Wait for the next preview."""
    last_time = previews.preview_time
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while previews.preview_time == last_time:
        await asyncio.sleep(0.002)
        if time.monotonic() > deadline:
            raise TimeoutError("The job did not go on.")


async def _wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _watch_previews(system: BenchSystem) -> AsyncGenerator[PreviewWatch]:
    """Subscribe to all previews, over a separate connection."""
    bus = await Bus.connect(system.broker.url, system.broker.token)
    previews = PreviewWatch()
    task = asyncio.create_task(previews.follow(bus))
    try:
        yield previews
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()
