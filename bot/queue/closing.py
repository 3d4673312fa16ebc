"""Ends jobs or queues them again: SQL first, then the board, the feed and the broker's leftovers.

Knows the store, the bus and the feed; decides nothing. It publishes an end to the feed once, after the commit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from bot.feed import Feed, Settled
from bot.queue.board import Board
from bot.states import over
from bot.store import Moved, Record, Store, reads
from bot.store.weeding import UNREADABLE, weed
from engine.bus import Bus, Unreachable
from engine.job import Blame

log = logging.getLogger(__name__)

Cause = Literal["lost", "untaken", "failed", "incomplete", "asked"]  # why a job is queued again


class Closing:
    """Methods that make a transition return it, or None if the job was over, unknown, or of a newer epoch."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, feed: Feed, *,
        clock: Callable[[], float] = time.time, freed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._feed, self._clock = store, bus, board, feed, clock
        self.freed = freed  # called when rows may be free
        self.ended: Callable[[Moved], None] = lambda _: None  # called at each end; the next at each requeue
        self.returned: Callable[[Cause], None] = lambda _: None

    async def reload(self) -> list[Record]:
        """Fill the board from SQL, and return sent and running jobs, oldest first. Unreadable jobs fail."""
        for job in await self._store.write(weed, self._clock()):
            log.error("job %s: failed, since its row cannot be read", job)
            self._board.drop(job)
            self._feed.publish(Settled(job, "failed", UNREADABLE))
        records = await self._store.ask(reads.active)
        for record in records:
            if record.id not in self._board.runs:
                self._board.put(record, self._clock())
        return records

    async def fail(self, job: str, reason: str, blame: Blame, *, epoch: int | None = None) -> Moved | None:
        """Fail a job. The reserved cost is refunded unless the member is to blame."""
        spent = None if blame == "member" else 0.0
        moved = await self._store.end(
            "fail", job, self._clock(), spent, epoch=epoch, why=blame, reason=reason, blame=blame
        )
        return await self.conclude(moved)

    async def cancel(self, job: str, spent: float, *, epoch: int | None = None, why: str = "") -> Moved | None:
        """Cancel a job, and charge `spent` device-seconds."""
        return await self.conclude(await self._store.end("cancel", job, self._clock(), spent, epoch=epoch, why=why))

    async def wish(self, job: str) -> Record | None:
        """Cancel a waiting job at once, or flag a sent one. Return the job now, None if unknown."""
        record, moved = await self._store.wish(job, self._clock())
        await self.conclude(
            moved, tombstone=moved is not None and moved.record.epoch > 0
        )  # an earlier worker may still run it
        return record

    async def again(
        self, job: str, *, step: int, why: str, reason: str = "", epoch: int | None = None, cause: Cause = "failed"
    ) -> Moved | None:  # fmt: skip
        """Queue a job again, or fail it after too many attempts without progress."""
        moved = await self._store.requeue(job, self._clock(), step=step, why=why, reason=reason, epoch=epoch)
        if moved is None or over(moved.record.state):
            return await self.conclude(moved)
        await self.back(moved.record, why, cause)
        return moved

    async def back(self, record: Record, why: str, cause: Cause) -> None:
        """Tell board, broker and listeners that a job was queued again in SQL."""
        run = self._board.runs.get(record.id)
        if run is not None and run.record.attempt < record.attempt:  # else this attempt was sent meanwhile
            self._board.drop(record.id)
        self.returned(cause)
        log.warning("job %s: queued again as attempt %d: %s", record.id, record.attempt, why)
        await self._clear_attempt(replace(record, attempt=record.attempt - 1))
        self.freed()

    async def take_back(self, job: str, epoch: int) -> None:
        """Revoke the claim of this epoch. Its worker stops at its next heartbeat without a report."""
        try:
            await self._bus.revoke(job, epoch)
        except Unreachable as error:  # the worker continues, and its results are accepted
            log.warning("job %s: %s", job, error)

    async def conclude(self, moved: Moved | None, *, tombstone: bool = False) -> Moved | None:
        """Announce a committed end and clear the broker; None passes through."""
        if moved is None:
            return None
        self.tell(moved)
        await self.clear(moved.record, tombstone=tombstone)
        return moved

    def tell(self, moved: Moved) -> None:
        """Announce a committed end to board, feed and listeners."""
        record = moved.record
        self._board.drop(record.id)
        self.ended(moved)
        self._feed.publish(Settled(record.id, record.state, record.reason))
        self.freed()
        log.info("job %s: %s %s", record.id, record.state, record.reason)

    async def _clear_attempt(self, record: Record) -> None:
        """Remove one attempt's message from the broker, but not the next attempt's, which may follow at any moment."""
        try:
            await self._bus.settle(record.job())
        except Unreachable as error:  # two attempts are queued; the claim lets only one run
            log.warning("job %s: %s", record.id, error)

    async def clear(self, record: Record, *, tombstone: bool = False) -> None:
        """Remove a job's messages from the broker. `tombstone`: also stop a worker that runs it."""
        try:
            if tombstone:
                await self._bus.cancel(record.id)
            await self._bus.settle(record.job(), every_attempt=True)
        except Unreachable as error:
            log.warning("job %s: %s", record.id, error)
