"""Paused jobs and weights, as the bot says them: told to the engine, and a pause is ended when it has lasted too long.

Knows what was said, of which runs, and time; nothing of who may say it. Nothing here is stored: a job that moves to
another worker runs on there. A paused job keeps its claim, its snapshots and its place; its rows are others' meanwhile.
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

MOST_SECONDS = 900.0  # of all pauses of a job
AGAIN = 0.25
LOOK = 0.5  # seconds between two looks whether somebody needs the room of what is paused


class Steering:
    """What is said of a job that is not here is not for us.

    `crowded`: whether somebody has waited long enough for the room of models that are in use; then no pause lasts.
    """

    def __init__(self, bus: Bus, roster: Roster, crowded: Callable[[], bool] = lambda: False) -> None:
        self._bus, self._roster, self._crowded = bus, roster, crowded

    async def listen(self) -> None:
        """Hears what is said, for ever."""
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
        """A second pause has what the first has left."""
        left = MOST_SECONDS - run.rested
        if run.paused is None and left > 0:
            run.paused = asyncio.get_running_loop().call_later(left, self._lapse, run)

    def _lapse(self, run: Run) -> None:
        _unpause(run)
        if run in self._roster and not run.ended:
            log.info("job %s goes on: it was paused for long enough, or others need its model's room", run.job.id)
            self._roster.changed.set()
            self._roster.spawn(self._tell(run))

    async def _tell(self, run: Run) -> None:
        """As the run stands when the engine comes to it, so that the order of two tellings is no matter."""
        await self._roster.thread.call(run.steer)


def _unpause(run: Run) -> None:
    if run.paused is not None:
        left = run.paused.when() - asyncio.get_running_loop().time()
        run.rested = MOST_SECONDS - max(0.0, left)
        run.paused.cancel()
        run.paused = None
        run.stepped = time.monotonic()  # its pace is that of its steps
