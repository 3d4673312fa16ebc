"""Measures a job that changes its worker, because the first one was killed or stopped in order.

A second worker is warm and idle beside it. The steps in previews before and after tell how much work is repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bot.bench.figures import Row, at, row
from bot.bench.premises import Premises, member
from bot.bench.watch import watching
from engine.bus import Bus

ROW_MS = 8.0  # 17 ms a step of one picture with guidance
PROMPT = "a lamp --steps 1000 --count 1 --sampler ddpm"
KILLS, ORDERLY, QUICK = 3, 5, 1
BEFORE = 3.5  # seconds of work before the worker ends: the first snapshot comes after two
PATIENCE = 60.0
KILLED, REPEATED = "worker killed → its job goes on elsewhere", "worker killed: its work repeated"
STOPPED = "worker stopped in order → its job goes on elsewhere"
NAMES = (KILLED, REPEATED, STOPPED)


@dataclass(frozen=True)
class Moved:
    """Seconds until the next worker's first step was seen, and the seconds of repeated work."""

    waited: float
    repeated: float


class Sight:
    """The newest preview of any job: its epoch, its step and its time."""

    def __init__(self) -> None:
        self.epoch, self.step, self.at = 0, 0, 0.0
        self.began = 0.0

    async def follow(self, bus: Bus) -> None:
        async for frame in bus.frames():
            now = time.monotonic()
            if frame.epoch != self.epoch:
                self.began = now
            self.epoch, self.step, self.at = frame.epoch, frame.step, now


async def measure(here: Premises, database: str, *, quick: bool) -> list[Row]:
    """Measure some kills and some orderly stops, each with its own job and two workers."""
    async with _eyes(here) as sight, watching(here.house.feed):
        rounds = (QUICK, QUICK) if quick else (KILLS, ORDERLY)
        stops = [await _moved(here, sight, f"stop-{n}", kill=False) for n in range(rounds[1])]
        kills = [await _moved(here, sight, f"kill-{n}", kill=True) for n in range(rounds[0])]
    return told(database, kills, stops, rounds)


def told(database: str, kills: Sequence[Moved], stops: Sequence[Moved], rounds: tuple[int, int]) -> list[Row]:
    """Return the rows. A goal holds for every round, so the figure is the worst one. `rounds`: expected kills and
    stops.
    """
    waits, again, orderly = [one.waited for one in kills], [one.repeated for one in kills], [o.waited for o in stops]
    repeated = f"work repeated at most {at([one.repeated for one in stops], 1.0):.2f} s"
    killed = f"{_of(waits)}; until its first new preview"
    return [
        row(KILLED, database, at(waits, 1.0), killed, samples=len(waits), of=rounds[0]),
        row(REPEATED, database, at(again, 1.0), _of(again), samples=len(again), of=rounds[0]),
        row(STOPPED, database, at(orderly, 1.0), f"{_of(orderly)}; {repeated}", samples=len(orderly), of=rounds[1]),
    ]


def _of(values: Sequence[float]) -> str:
    return f"the worst of {len(values)}, median {at(values, 0.5):.2f} s"


async def _moved(here: Premises, sight: Sight, name: str, *, kill: bool) -> Moved:
    first, second = f"{name}-first", f"{name}-second"
    await here.workers.start(first, row_ms=ROW_MS)
    job = await here.imagine(PROMPT, member(0))
    old = sight.epoch
    await _until(lambda: sight.epoch != old)
    await here.workers.start(second, row_ms=ROW_MS)
    await asyncio.sleep(max(0.0, sight.began + BEFORE - time.monotonic()))
    epoch, pulled, known = sight.epoch, time.monotonic(), sight.step
    if kill:
        await here.workers.kill(first)
    else:
        here.workers.stop(first)
    while sight.epoch == epoch:
        known = sight.step
        await _next(sight)
    moved = Moved(sight.began - pulled, max(0, known - sight.step + 1) * (2 * ROW_MS + 1) / 1000)
    await here.house.studio.cancel(job, member(0))
    await _leave(here, second, first if not kill else None)
    return moved


async def _leave(here: Premises, *names: str | None) -> None:
    """Stop this round's workers, so that none of them works in the next one."""
    left = [name for name in names if name is not None]
    for name in left:
        here.workers.stop(name)
        await here.workers.gone(name)


async def _next(sight: Sight) -> None:
    """Wait for the next preview."""
    seen, end = sight.at, time.monotonic() + PATIENCE
    while sight.at == seen:
        await asyncio.sleep(0.002)
        if time.monotonic() > end:
            raise TimeoutError("The job did not go on.")


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _eyes(here: Premises) -> AsyncIterator[Sight]:
    """Subscribe to all previews, over a separate connection."""
    bus = await Bus.connect(here.broker.url, here.broker.token)
    sight = Sight()
    task = asyncio.create_task(sight.follow(bus))
    try:
        yield sight
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()
