"""Saves the progress of runs: snapshots every two seconds, and the hand-over when this worker stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from engine.bus import Bus, Fenced, Unreachable
from engine.engine import Engine
from engine.job import Snapshot
from engine.worker.attention import Attention
from engine.worker.outcome import Outcome
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
HAND_OVER_SECONDS = 1.0
SAVE_SECONDS = 0.7
AT_ONCE = 4  # concurrent writes


class Keeping:
    """Snapshots of all runs, taken between two steps and stored off the engine's thread."""

    def __init__(self, bus: Bus, roster: Roster, outcome: Outcome, attention: Attention) -> None:
        self._bus, self._roster, self._outcome, self._attention = bus, roster, outcome, attention
        self._line = asyncio.Semaphore(AT_ONCE)

    async def keep(self) -> None:
        """Save new progress regularly, for ever."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            self._attention.lapse()
            await self._save([run for run in self._roster if run.unsaved and not run.ended])

    async def _save(self, runs: Sequence[Run]) -> None:
        """Take all snapshots between two steps: one after another, those of a full worker would be seconds old."""
        if runs:
            made = await self._taken(runs)
            await asyncio.gather(*(self._store(run, each) for run, each in zip(runs, made, strict=True)))

    async def _taken(self, runs: Sequence[Run], *, last: bool = False) -> list[list[Snapshot]]:
        """Return the snapshots of each run. `last`: also pause the runs, so that no further step runs."""

        def taken(engine: Engine) -> list[list[Snapshot]]:
            for run in runs if last else ():
                engine.pause(run.job.id)
            return [engine.snapshots(run.job.id, run.claim.epoch) for run in runs]

        return await self._roster.thread.call(taken)

    async def _store(self, run: Run, snapshots: Sequence[Snapshot]) -> None:
        """Store a run's snapshots. Few writes run at a time, since heartbeats share the connection."""
        puts = await asyncio.gather(*(self._put(run, snapshot) for snapshot in snapshots), return_exceptions=True)
        try:
            for error in puts:
                if error is not None:
                    raise error
        except Fenced as error:
            await self._roster.lose(run, str(error))
        except Unreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def _put(self, run: Run, snapshot: Snapshot) -> None:
        """Store a snapshot unless our lease may have expired: the next owner may have dropped the snapshots."""
        async with self._line:
            if not run.ended and time.monotonic() - max(run.began, run.renewed) < self._bus.kept.lease:
                await self._bus.put_snapshot(snapshot)
                run.saved[snapshot.image] = snapshot.k

    async def hand_over(self) -> None:
        """Snapshot, release and hand back every run, so that another worker continues from the same step."""
        runs = list(self._roster)
        try:
            async with asyncio.timeout(HAND_OVER_SECONDS):
                made = await self._last(runs)
                await asyncio.gather(*(self._hand_over(run, each) for run, each in zip(runs, made, strict=True)))
        except TimeoutError as error:
            log.warning("not every job could be handed back in time: %r", error)

    async def _last(self, runs: Sequence[Run]) -> list[list[Snapshot]]:
        """Return last snapshots; none where a long step runs or the engine fails: earlier ones count then."""
        try:
            async with asyncio.timeout(SAVE_SECONDS):
                return await self._taken(runs, last=True)
        except TimeoutError:
            log.warning("a long step is running, so jobs continue from earlier snapshots")
        except Exception:
            log.exception("no last snapshots could be taken")
        return [[] for _ in runs]

    async def _hand_over(self, run: Run, snapshots: Sequence[Snapshot]) -> None:
        """Hand back one run; its errors do not affect the others."""
        try:
            async with asyncio.timeout(SAVE_SECONDS):
                await self._store(run, snapshots)
        except TimeoutError:
            log.warning("job %s continues from an earlier snapshot", run.job.id)
        try:
            await self._let_go(run)
        except Unreachable as error:
            log.warning("job %s: %s", run.job.id, error)

    async def _let_go(self, run: Run) -> None:
        if run.end():
            self._roster.cease(run)
            await self._outcome.return_(run)
        elif run.tasks:  # its result is being published
            await asyncio.wait(run.tasks, timeout=SAVE_SECONDS)
