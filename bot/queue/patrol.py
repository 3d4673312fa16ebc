"""The patrol: finds jobs whose worker or message was lost, that exceed their deadline, or whose cancel got no answer.

Knows the board, the claims on the bus, and time; makes every transition by `Closing`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from bot.models import crews
from bot.queue.board import Board, Run
from bot.queue.closing import Closing
from bot.states import ACTIVE, over
from bot.store import Moved, Record, Store, Unavailable, reads
from engine.bus import Bus, Unreachable
from engine.logline import about

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
WAITED = "It waited too long for a worker; nothing was charged."
TOO_LONG = "It was not done in time; nothing was charged."


class Patrol:
    """Run `run` as a task. `lease`: seconds that a claim lasts without a renewal."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, closing: Closing, submit: Callable[[Record], Awaitable[None]], *,
        lease: float = 10.0, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._closing, self._submit = store, bus, board, closing, submit
        self._lease, self._clock = lease, clock
        self._asked: dict[str, float] = {}  # when a silent job's claim was last looked up
        self._orphaned: dict[str, float] = {}  # since when a job has had no claim

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        while True:
            await asyncio.sleep(min(EVERY_SECONDS, self._lease / 4))
            try:
                await self.round()
            except (Unreachable, Unavailable) as error:
                log.warning("patrol: %s", error)
                self._orphaned.clear()  # no worker could renew a claim meanwhile

    async def round(self) -> None:
        """Check all jobs once. Raises `Unreachable` and `Unavailable`."""
        for record in await self._store.ask(reads.overdue, self._clock()):
            await self._expire(record)
        for run in list(self._board.runs.values()):
            if self._silent(run):
                with about(run.record.id, run.record.worker):
                    await self._look(run)
        for known in (self._asked, self._orphaned):
            for job in [job for job in known if job not in self._board.runs]:
                del known[job]

    async def _expire(self, record: Record) -> None:
        if await self._closing.fail(record.id, TOO_LONG if record.started else WAITED, "us"):
            await self._closing.clear(record, tombstone=True)

    def _silent(self, run: Run) -> bool:
        """Return True if its claim is due for a check: often for a cancelling or orphaned job, else once a lease."""
        job, now = run.record.id, self._clock()
        pause = self._lease / 4 if run.record.cancelling or job in self._orphaned else self._lease
        return now - max(run.beat, self._asked.get(job, 0.0)) >= pause

    async def _look(self, run: Run) -> None:
        job, now = run.record.id, self._clock()
        self._asked[job] = now
        if await self._bus.holder(job) is not None:
            run.beat = now
            self._orphaned.pop(job, None)
            if run.record.cancelling:
                await self._bus.cancel(job)
            return
        alone = now - self._orphaned.setdefault(job, now)
        if alone >= self._lease / 2 and await self._left(run):
            return
        if run.record.cancelling:
            if alone >= self._lease / 4:
                await self._closing.cancel(job, spent(run), why="nobody runs it")
        elif self._board.behind > now:  # its worker may have released it because it is done
            self._orphaned[job] = now
        elif run.claimed:
            await self._claim_lost(run, alone)
        else:
            await self._unclaimed(run, alone)

    async def _left(self, run: Run) -> bool:
        """Drop a run that is not active in SQL, and return True. Happens if a database reply was lost for too long."""
        record = await self._store.record(run.record.id)
        if record is not None and record.state in ACTIVE:
            return False
        log.warning("job %s: it is %s, which was not announced", run.record.id, record.state if record else "deleted")
        self._board.drop(run.record.id)
        if record is not None and over(record.state):
            self._closing.tell(Moved(record, run.record.state))
        self._closing.freed()
        return True

    async def _claim_lost(self, run: Run, alone: float) -> None:
        """Queue a job again if its claim is lost for three leases. The broker should have redelivered it within one."""
        crew = crews(self._bus.workers).get(run.record.pool)
        if alone >= 3 * self._lease and crew is not None and not crew.full(run.record.model):
            await self._closing.again(run.record.id, step=run.step, why=f"{run.record.worker} lost it", cause="lost")

    async def _unclaimed(self, run: Run, alone: float) -> None:
        """Publish an unclaimed job again, later requeue it: the broker may have lost it. Busy workers are normal."""
        crew = crews(self._bus.workers).get(run.record.pool)
        if crew is None or crew.full(run.record.model):
            self._orphaned[run.record.id] = self._clock()
        elif alone >= 6 * self._lease:
            await self._closing.again(run.record.id, step=run.step, why="no worker took it", cause="untaken")
        elif alone >= self._lease:
            await self._submit(run.record)


def spent(run: Run) -> float:
    """Return a run's cost so far in device-seconds, by its known steps."""
    return max(0.0, run.record.cost - run.cost_left)
