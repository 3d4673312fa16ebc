"""Keeping a run's progress: snapshots every two seconds, and the orderly hand-over when this worker stops.

Knows when and for whom snapshots are made; nothing of what is in them.
"""

from __future__ import annotations

import asyncio
import logging
import time

from engine.bus import Bus, Fenced, Unreachable
from engine.worker.attention import Attention
from engine.worker.outcome import Outcome
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
HAND_OVER_SECONDS = 1.0
SAVE_SECONDS = 0.5


class Keeping:
    """Snapshots of all runs. They are taken between two steps and stored off the engine's thread."""

    def __init__(self, bus: Bus, roster: Roster, outcome: Outcome, attention: Attention) -> None:
        self._bus, self._roster, self._outcome, self._attention = bus, roster, outcome, attention

    async def keep(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            self._attention.lapse()
            for run in self._roster:
                if run.unsaved and not run.ended:
                    await self._save(run)

    async def _save(self, run: Run) -> None:
        try:
            for snapshot in await self._roster.thread.call(
                lambda engine: engine.snapshots(run.job.id, run.claim.epoch)
            ):
                # Whoever slept through its lease must not write where the next owner has already tidied up.
                if not run.ended and time.monotonic() - max(run.began, run.renewed) < self._bus.kept.lease:
                    await self._bus.put_snapshot(snapshot)
                    run.saved[snapshot.image] = snapshot.k
        except Fenced as error:
            await self._roster.lose(run, str(error))
        except Unreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def hand_over(self) -> None:
        """Snapshot, release and give back every run: another worker goes on at once, from the very step."""
        try:
            async with asyncio.timeout(HAND_OVER_SECONDS):
                await asyncio.gather(*(self._hand_over(run) for run in self._roster))
        except (TimeoutError, Unreachable) as error:
            log.warning("not everything could be handed over: %r", error)

    async def _hand_over(self, run: Run) -> None:
        try:
            async with asyncio.timeout(SAVE_SECONDS):
                await self._save(run)
        except TimeoutError:  # a long step is running
            log.warning("job %s goes on from an earlier snapshot", run.job.id)
        if run.end():
            self._roster.cease(run)
            await self._outcome.give_back(run)
        elif run.tasks:  # its result is on its way
            await asyncio.wait(run.tasks, timeout=SAVE_SECONDS)
