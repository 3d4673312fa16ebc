"""Consumes workers' results: stores each, publishes it to the feed, and only then acknowledges it.

Jobs run in parallel, the results of one job in order. A faulty result affects no other: it is retried twice, then
becomes a dead letter. During an outage of database or disk a result is retried without limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from bot.feed import Developing, Feed
from bot.queue.arrivals import Arrivals, Incomplete
from bot.queue.board import Board, Run
from bot.queue.bundle import bundle
from bot.queue.closing import Closing
from bot.queue.sender_check import sender_fault
from bot.states import over
from bot.store import Store, Unavailable, writes
from engine.bus import Bus, Delivered, Unreachable
from engine.job import Cancelled, Failed, Finished, Picture, Result, Returned, Started
from engine.logline import about

log = logging.getLogger(__name__)

TRIES = 3
AT_ONCE = 16
AT_HAND = 128  # most fetched results: the broker redelivers what is not acknowledged in time
BEHIND = 128  # results waiting at the broker beyond which we are behind
BELIEVED = 10.0  # seconds that a result's count of waiting ones is believed: another may never come
PAUSE = 0.25  # seconds before a redelivery, times its tries
OUTAGE_PAUSE = 2.0


class Settle:
    """Run `run` as a task."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, feed: Feed, closing: Closing, arrivals: Arrivals, *,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._feed = store, bus, board, feed
        self._closing, self._arrivals, self._clock = closing, arrivals, clock
        self._slots, self._hand = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_HAND)
        self._waiting: dict[str, deque[Delivered[Result]]] = {}  # job → its fetched results, in order
        self._faults: Counter[int] = Counter()  # faults of each result, by stream sequence number
        self._outages: dict[str, dict[Picture, str]] = {}  # job → its pictures that wait for the end of an outage
        self.regained: Callable[[], None] = lambda: None  # called when a running job is claimed again

    async def run(self) -> None:
        """Consume results until cancelled."""
        async with asyncio.TaskGroup() as group:
            async for delivered in self._bus.results():
                await self._hand.acquire()
                self._board.behind = self._clock() + BELIEVED if delivered.pending > BEHIND else 0.0
                job = delivered.value.job
                if (waiting := self._waiting.get(job)) is not None:
                    waiting.append(delivered)
                    continue
                self._waiting[job] = deque([delivered])
                group.create_task(self._in_turn(job), name=f"settle {job}")

    async def _in_turn(self, job: str) -> None:
        """Handle the fetched results of one job, until none is left."""
        waiting = self._waiting[job]
        try:
            while waiting:
                async with self._slots:
                    with about(job, getattr(waiting[0].value, "worker", "")):
                        await self._next(waiting)
        finally:
            del self._waiting[job]

    async def _next(self, waiting: deque[Delivered[Result]]) -> None:
        """Handle the first result, or all at the head of the queue that can be stored together."""
        taken = bundle(waiting, self._is_good)
        try:
            if len(taken) == 1 or not await self._settle_all(taken):
                for delivered in taken:
                    await self.settle(delivered)
        finally:
            for _ in taken:
                waiting.popleft()
                self._hand.release()

    def _is_good(self, delivered: Delivered[Result]) -> bool:
        """Return whether a result never had a fault, so that it may be stored with others."""
        healthy = delivered.value.job not in self._outages and not self._faults[_number(delivered)]
        return healthy and not sender_fault(delivered, self._board)

    async def _settle_all(self, taken: Sequence[Delivered[Result]]) -> bool:
        """Store results together, then acknowledge them. False: this failed, and none was acknowledged.

        The caller then handles them one by one, so that a fault affects only its own result.
        """
        pictures = [one.value for one in taken if isinstance(one.value, Picture)]
        done = next((one.value for one in taken if isinstance(one.value, Finished)), None)
        try:
            _, moved = await self._arrivals.take_in(pictures, done)
            if done is not None and moved is None:
                return False
            await self._closing.conclude(moved)
            await asyncio.gather(*(one.ack() for one in taken))
        except Exception as error:
            log.info("job %s: %d results are stored one by one: %s", taken[0].value.job, len(taken), error)
            return False
        return True

    async def settle(self, delivered: Delivered[Result]) -> None:
        """Handle one result. Any fault is logged, and the result retried or made a dead letter."""
        value, number = delivered.value, _number(delivered)
        try:
            if why := sender_fault(delivered, self._board):
                await delivered.lay_aside(why)
                return
            try:
                await self.take(value, last=self._faults[number] >= TRIES - 1)
            except (Unreachable, Unavailable, OSError) as error:
                log.warning("job %s: %s waits: %s", value.job, _kind(delivered), error)
                self._delayed(value, error)
                await delivered.nak(OUTAGE_PAUSE)
            except Exception as error:
                await self._wrong(delivered, error)
            else:
                self._answered(value, number)
                await delivered.ack()
        except Unreachable as error:
            log.warning("job %s: %s comes again: %s", value.job, _kind(delivered), error)

    def _delayed(self, value: Result, error: OSError) -> None:
        if isinstance(value, Picture):
            self._outages.setdefault(value.job, {})[value] = str(error)

    def _answered(self, value: Result, number: int) -> None:
        self._faults.pop(number, None)
        if isinstance(value, Picture):
            waiting = self._outages.get(value.job, {})
            waiting.pop(value, None)
            if not waiting:
                self._outages.pop(value.job, None)

    async def _wrong(self, delivered: Delivered[Result], error: Exception) -> None:
        """Count a fault here, not by the broker's deliveries, which include those that an outage spoilt."""
        number = _number(delivered)
        self._faults[number] += 1
        tries = self._faults[number]
        log.error("job %s: %s, try %d", delivered.value.job, _kind(delivered), tries, exc_info=error)
        if tries < TRIES:
            await delivered.nak(PAUSE * tries)
        else:
            await delivered.lay_aside(f"{type(error).__name__}: {error}")
            self._answered(delivered.value, number)

    async def take(self, value: Result, *, last: bool = False) -> None:
        """Apply a result. Duplicate, late and stale ones change nothing. `last`: it will not be redelivered."""
        match value:
            case Started():
                await self._started(value)
            case Picture():
                await self._arrivals.take_in([value])
            case Finished():
                await self._finished(value, last)
            case Failed():
                await self._failed(value)
            case Returned():
                await self._store.write(writes.let_go, value.job, value.epoch)
            case Cancelled():
                await self._closing.cancel(value.job, value.cost, epoch=value.epoch, why=f"after {value.steps} steps")

    async def _started(self, value: Started) -> None:
        run = self._board.runs.get(value.job)
        forgotten = run is not None and await self._forgotten(run, value.epoch)
        seen = run.step if run and not forgotten else 0
        now = self._clock()
        moved = await self._store.start(
            value.job, value.epoch, value.worker, value.step, now, seen=seen, forgotten=forgotten
        )
        if moved is None:
            await self._stray(value)
        elif over(moved.record.state):
            self._closing.tell(moved)
            await self._closing.clear(moved.record, tombstone=True)
        else:
            if moved.source == "running" and run is not None and run.record.epoch != value.epoch:
                self.regained()
            if forgotten:
                self._board.restart(value.job)
            run = self._board.put(moved.record, now)
            self._feed.publish(Developing(value.job, run.step, moved.record.steps, run.cost_left))
            if moved.record.cancelling:
                await self._bus.cancel(value.job)
            if self._feed.watched(value.job):
                await self._bus.want(value.job)

    async def _forgotten(self, run: Run, epoch: int) -> bool:
        """Return True if the broker lost its store, and the job's snapshots, between the known claim and this one.

        Raises `Unreachable`.
        """
        return 0 < run.record.epoch < epoch and run.record.epoch < await self._bus.first_epoch()

    async def _stray(self, value: Started) -> None:
        """Stop a worker that started an ended job, which the broker delivered twice. Ignore a stale epoch."""
        record = await self._store.record(value.job)
        if record is not None and over(record.state):
            log.warning("job %s: %s began it though it is %s", value.job, value.worker, record.state)
            await self._closing.clear(record, tombstone=True)

    async def _finished(self, value: Finished, last: bool) -> None:
        _, moved = await self._arrivals.take_in([], value)
        if await self._closing.conclude(moved) is None:
            await self._unfinished(value, last)

    async def _unfinished(self, value: Finished, last: bool) -> None:
        """Handle a job that was reported done but is over, deleted, of a newer epoch, or lacks pictures."""
        record = await self._store.record(value.job)
        if record is None or over(record.state) or value.epoch < record.epoch:
            return
        if record.deleted is not None:  # deleted while it ran: its pictures were not stored
            await self._closing.cancel(value.job, value.cost, epoch=value.epoch, why="deleted")
            return
        missing = await self._arrivals.missing(record)
        if waiting := self._outages.get(value.job):
            raise OSError(next(iter(waiting.values())))  # not lost: they are stored after the outage
        elif last:
            said = f"A worker reported it done without {', '.join(missing)}."
            await self._closing.again(
                value.job, step=record.step, why=said, reason=said, epoch=value.epoch, cause="incomplete"
            )
        else:
            raise Incomplete(f"{', '.join(missing)} of job {value.job}: not here yet")

    async def _failed(self, value: Failed) -> None:
        if value.retry:
            run = self._board.runs.get(value.job)
            step = run.step if run else 0
            await self._closing.again(value.job, step=step, why=value.reason, reason=value.reason, epoch=value.epoch)
        else:
            await self._closing.fail(value.job, value.reason, value.blame, epoch=value.epoch)


def _number(delivered: Delivered[Result]) -> int:
    return delivered.msg.metadata.sequence.stream


def _kind(delivered: Delivered[Result]) -> str:
    return type(delivered.value).__name__
