"""Heartbeats: every few seconds each run's message and claim are renewed, while the work makes progress.

A stuck worker must not look alive: its heartbeat raises `Stuck`, the process ends, and other workers take its jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time

from engine.bus import Bus, Unreachable
from engine.worker.outcome import Outcome
from engine.worker.pulse import Pulse
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

PAUSE = 0.25


class Stuck(RuntimeError):
    """The engine or the decode worker missed a deadline or crashed: the process must be restarted."""


class Lease:
    """Heartbeats, and the tombstones that cancel a run."""

    def __init__(self, bus: Bus, roster: Roster, outcome: Outcome, pulse: Pulse) -> None:
        self._bus, self._roster, self._outcome, self._pulse = bus, roster, outcome, pulse

    async def beat(self) -> None:
        """Renew for ever. Raises `Stuck` when a deadline was missed."""
        while True:
            if (late := self._pulse.late()) is not None:
                raise Stuck(late)
            await asyncio.gather(*(self._renew(run) for run in self._roster))
            self._roster.changed.set()
            await asyncio.sleep(self._bus.kept.beat)

    async def _renew(self, run: Run) -> None:
        try:
            for handle in list(run.handles.values()):
                await handle.in_progress()
            asked = time.monotonic()
            if await self._bus.renew(run.claim):
                run.renewed = asked
            elif run in self._roster:
                lost = self._roster.lose(run, "its claim has lapsed or gone to another worker")
                self._roster.spawn(lost)  # it waits for the engine's current step; the heartbeat must not
        except Unreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def watch(self) -> None:
        """Receive cancels, for ever."""
        while True:
            try:
                async for job in self._bus.watch_cancelled():
                    self._cancel(job)
            except Unreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(PAUSE)

    async def look_again(self) -> None:
        """Check every run for a cancel that was missed during an outage."""
        for run in self._roster:
            if await self._bus.is_cancelled(run.job.id):
                self._cancel(run.job.id)

    def _cancel(self, job: str) -> None:
        run = self._roster.get(job)
        if run is not None and run.end():
            self._roster.spawn(self._cancelled(run))

    async def _cancelled(self, run: Run) -> None:
        try:
            steps = await self._roster.stop(run)
            await self._outcome.cancelled(run, min(steps, run.last))
        except Unreachable as error:
            await self._roster.lose(run, str(error))
