"""Watched jobs: previews are made only for jobs that somebody watches.

Watchers repeat their requests, since nobody reports leaving.
"""

from __future__ import annotations

import asyncio
import logging
import time

from engine.bus import Bus, Unreachable
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

WANTED_SECONDS = 10.0
PAUSE = 0.25


class Attention:
    """Makes the engine watch exactly the jobs that are watched."""

    def __init__(self, bus: Bus, roster: Roster) -> None:
        self._bus, self._roster = bus, roster
        self._until: dict[str, float] = {}

    def wanted(self, job: str) -> bool:
        return self._until.get(job, 0.0) > time.monotonic()

    async def listen(self) -> None:
        """Receive watch requests, for ever."""
        while True:
            try:
                async for job in self._bus.wants():
                    self._want(job)
            except Unreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(PAUSE)

    def _want(self, job: str) -> None:
        self._until[job] = time.monotonic() + WANTED_SECONDS
        run = self._roster.get(job)
        if run is not None and not run.watched:
            self._watch(run, True)

    def lapse(self) -> None:
        """Stop watching jobs without a recent request."""
        self._until = {job: until for job, until in self._until.items() if self.wanted(job)}
        for run in self._roster:
            if run.watched and not self.wanted(run.job.id):
                self._watch(run, False)

    def _watch(self, run: Run, on: bool) -> None:
        run.watched = on
        self._roster.spawn(self._tell(run, on))

    async def _tell(self, run: Run, on: bool) -> None:
        await self._roster.thread.call(lambda engine: engine.watch(run.job.id, on))
