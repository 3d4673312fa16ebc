"""Which jobs somebody watches: only their steps are shown. Wants must be repeated, since nobody says when he goes away.

Knows wants and time; nothing of how a preview looks.
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
    """Keeps the engine's watch on exactly the jobs that are wanted."""

    def __init__(self, bus: Bus, roster: Roster) -> None:
        self._bus, self._roster = bus, roster
        self._until: dict[str, float] = {}

    def wanted(self, job: str) -> bool:
        return self._until.get(job, 0.0) > time.monotonic()

    async def listen(self) -> None:
        """Hears wants, for ever."""
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
        """Forgets the jobs that nobody has asked for lately."""
        self._until = {job: until for job, until in self._until.items() if self.wanted(job)}
        for run in self._roster:
            if run.watched and not self.wanted(run.job.id):
                self._watch(run, False)

    def _watch(self, run: Run, on: bool) -> None:
        run.watched = on
        self._roster.spawn(self._tell(run, on))

    async def _tell(self, run: Run, on: bool) -> None:
        await self._roster.thread.call(lambda engine: engine.watch(run.job.id, on))
