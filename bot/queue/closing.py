"""How a job leaves the board: ended, or queued again. SQL first; then the board, the feed, and the broker's leftovers.

Knows the store, the bus and the feed; decides nothing. The feed hears of an end after it was committed, and once.
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
    """Every method returns what happened, or None if the job was over, unknown, or of a newer epoch."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, feed: Feed, *,
        clock: Callable[[], float] = time.time, freed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._feed, self._clock = store, bus, board, feed, clock
        self.freed = freed  # called whenever there may be room
        self.ended: Callable[[Moved], None] = lambda _: None  # called at each end; the next at each return to the queue
        self.returned: Callable[[Cause], None] = lambda _: None

    async def reload(self) -> list[Record]:
        """Fill the board from SQL; what was sent or runs, oldest first. What cannot be read ends as failed."""
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
        """Failed; all of the reserved cost is given back unless the member is to blame."""
        spent = None if blame == "member" else 0.0
        moved = await self._store.end(
            "fail", job, self._clock(), spent, epoch=epoch, why=blame, reason=reason, blame=blame
        )
        return await self.conclude(moved)

    async def cancel(self, job: str, spent: float, *, epoch: int | None = None, why: str = "") -> Moved | None:
        """Cancelled; charged for what was run."""
        return await self.conclude(await self._store.end("cancel", job, self._clock(), spent, epoch=epoch, why=why))

    async def wish(self, job: str) -> Record | None:
        """A member wants it cancelled: done at once while it waits, else noted. The job now, None if unknown."""
        record, moved = await self._store.wish(job, self._clock())
        await self.conclude(
            moved, tombstone=moved is not None and moved.record.epoch > 0
        )  # who had it may draw it still
        return record

    async def again(
        self, job: str, *, step: int, why: str, reason: str = "", epoch: int | None = None, cause: Cause = "failed"
    ) -> Moved | None:  # fmt: skip
        """Into the queue once more, unless it was tried too often without progress: then it fails."""
        moved = await self._store.requeue(job, self._clock(), step=step, why=why, reason=reason, epoch=epoch)
        if moved is None or over(moved.record.state):
            return await self.conclude(moved)
        await self.back(moved.record, why, cause)
        return moved

    async def back(self, record: Record, why: str, cause: Cause) -> None:
        """It is in the queue once more, and SQL has it: so the broker and everyone in the house shall know."""
        run = self._board.runs.get(record.id)
        if run is not None and run.record.attempt < record.attempt:  # else this attempt has been sent meanwhile
            self._board.drop(record.id)
        self.returned(cause)
        log.warning("job %s: queued again as attempt %d: %s", record.id, record.attempt, why)
        await self._clear_attempt(replace(record, attempt=record.attempt - 1))
        self.freed()

    async def take_back(self, job: str, epoch: int) -> None:
        """Whoever has its claim of this epoch loses it, and stops at its next beat without a word."""
        try:
            await self._bus.revoke(job, epoch)
        except Unreachable as error:  # then its worker goes on, and what it makes is taken
            log.warning("job %s: %s", job, error)

    async def conclude(self, moved: Moved | None, *, tombstone: bool = False) -> Moved | None:
        """A job is over, and SQL has it, or nothing happened: everyone hears of it, and the broker is cleared."""
        if moved is None:
            return None
        self.tell(moved)
        await self.clear(moved.record, tombstone=tombstone)
        return moved

    def tell(self, moved: Moved) -> None:
        """A job is over, and SQL has it: say so to everyone in the house."""
        record = moved.record
        self._board.drop(record.id)
        self.ended(moved)
        self._feed.publish(Settled(record.id, record.state, record.reason))
        self.freed()
        log.info("job %s: %s %s", record.id, record.state, record.reason)

    async def _clear_attempt(self, record: Record) -> None:
        """Take one attempt's message out of the queue, and not the one that may follow it at any moment."""
        try:
            await self._bus.settle(record.job())
        except Unreachable as error:  # then two attempts lie there; the claim lets only one run at a time
            log.warning("job %s: %s", record.id, error)

    async def clear(self, record: Record, *, tombstone: bool = False) -> None:
        """Take what the broker may still hold out of the way; a worker that runs it stops at a tombstone."""
        try:
            if tombstone:
                await self._bus.cancel(record.id)
            await self._bus.settle(record.job(), every_attempt=True)
        except Unreachable as error:
            log.warning("job %s: %s", record.id, error)
