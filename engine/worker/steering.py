"""Pauses and weights of running jobs: applies the bot's messages to the engine, and limits the length of pauses.

Nothing is stored: a job that moves to another worker runs on there. A paused job keeps its claim, its snapshots and its
place, while other jobs use its rows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from engine.bus import Bus, Unreachable
from engine.job import Recipe, Steer
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

MOST_SECONDS = 900.0  # sum of a job's pauses
AGAIN = 0.25
LOOK = 0.5  # seconds between checks whether another model needs the memory of a paused job's


class Steering:
    """Ignores messages about jobs that are not here.

    `crowded`: whether a job has waited long enough for memory that models in use occupy. Then every pause ends.
    """

    def __init__(self, bus: Bus, roster: Roster, crowded: Callable[[], bool] = lambda: False) -> None:
        self._bus, self._roster, self._crowded = bus, roster, crowded

    async def listen(self) -> None:
        """Receive pauses and weights, for ever."""
        self._roster.spawn(self._make_room())
        await self._hear()

    async def _make_room(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            for run in self._roster if self._crowded() else ():
                if run.paused is not None and run.held:
                    self._lapse(run)

    async def _hear(self) -> None:
        while True:
            try:
                async for steer in self._bus.steers():
                    self._take(steer)
            except Unreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(AGAIN)

    def _take(self, steer: Steer) -> None:
        run = self._roster.get(steer.job)
        if run is None or run.ended or not isinstance(run.job.task, Recipe):
            return
        if steer.deed == "weigh":
            run.weight = steer.weight
        elif steer.deed == "pause":
            self._pause(run)
        else:
            _unpause(run)
        self._roster.changed.set()  # a paused job's rows are free
        self._roster.spawn(self._tell(run))

    def _pause(self, run: Run) -> None:
        """Pause a run; all its pauses share one time limit."""
        left = MOST_SECONDS - run.rested
        if run.paused is None and left > 0:
            run.paused = asyncio.get_running_loop().call_later(left, self._lapse, run)

    def _lapse(self, run: Run) -> None:
        _unpause(run)
        if run in self._roster and not run.ended:
            log.info("job %s resumes: its pause was too long, or other models need the memory of its model", run.job.id)
            self._roster.changed.set()
            self._roster.spawn(self._tell(run))

    async def _tell(self, run: Run) -> None:
        """Apply the run's state when the engine gets to it, so the order of two calls does not matter."""
        await self._roster.thread.call(run.steer)


def _unpause(run: Run) -> None:
    if run.paused is not None:
        left = run.paused.when() - asyncio.get_running_loop().time()
        run.rested = MOST_SECONDS - max(0.0, left)
        run.paused.cancel()
        run.paused = None
        run.stepped = time.monotonic()  # the pause must not count in its pace
