"""Paused jobs and weights, as the bot says them: told to the engine, and a pause is ended when it has lasted too long.

Knows what was said, of which runs, and time; nothing of who may say it. Nothing here is stored: a job that moves to
another worker runs on there. A paused job keeps its claim, its snapshots and its place; its rows are others' meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time

from engine.bus import Bus, Unreachable
from engine.job import Recipe, Steer
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

MOST_SECONDS = 900.0  # of a pause
AGAIN = 0.25


class Steering:
    """What is said of a job that is not here is not for us."""

    def __init__(self, bus: Bus, roster: Roster) -> None:
        self._bus, self._roster = bus, roster

    async def listen(self) -> None:
        """Hears what is said, for ever."""
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
        """A second pause begins the time anew."""
        if run.paused is not None:
            run.paused.cancel()
        run.paused = asyncio.get_running_loop().call_later(MOST_SECONDS, self._lapse, run)

    def _lapse(self, run: Run) -> None:
        _unpause(run)
        if run in self._roster and not run.ended:
            log.info("job %s goes on: it was paused for long enough", run.job.id)
            self._roster.changed.set()
            self._roster.spawn(self._tell(run))

    async def _tell(self, run: Run) -> None:
        """As the run stands when the engine comes to it, so that the order of two tellings is no matter."""
        await self._roster.thread.call(run.steer)


def _unpause(run: Run) -> None:
    if run.paused is not None:
        run.paused.cancel()
        run.paused = None
        run.stepped = time.monotonic()  # its pace is that of its steps
