"""The dispatcher: sends jobs to the broker in fair order, no more than live workers have room for.

It sleeps until poked (a job arrived or ended, a worker changed). It records a job as sent in SQL before it submits it,
so `republish` restores what the broker lacks. Knows the store and the bus; nothing of front ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from bot.feed import Feed, Queued
from bot.images.pictures import Missing, Pictures
from bot.limits import Limits
from bot.models import Crew, Models, crews
from bot.orders import renewed
from bot.passing import Passing
from bot.queue.board import Board
from bot.queue.closing import Closing
from bot.queue.forecast import Forecast, Spot
from bot.rules.together import Together
from bot.sentences import GONE
from bot.store import Moved, Record, Store, Unavailable, Wish, rules
from engine.bus import Bus, Unreachable
from engine.job import Job, Malformed, Recipe, sources
from engine.logline import about

log = logging.getLogger(__name__)

MOST_BEYOND, BEYOND = 12.0, 96  # most rows of newcomers beyond the workers' rows: as a share, and absolute
NAP_SECONDS = 1.0  # longest sleep without a poke
TELL_SECONDS = 1.0  # least time between two publications of queue places


def overbook(rows: int) -> float:
    """Return how far newcomers may exceed a pool's rows, as a share of them.

    A small pool has room for a grid or two: without this, nine members who arrive together would each wait for the
    last step of another before their first. In a large pool rows become free soon, so there the share is 1.
    """
    return max(1.0, min(MOST_BEYOND, BEYOND / max(1, rows)))


class Dispatcher:
    """Run `run` as a task."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, feed: Feed, forecast: Forecast, models: Models, pictures: Pictures,
        closing: Closing, *, limits: Limits, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._feed = store, bus, board, feed
        self._forecast, self._models, self._pictures, self._closing = forecast, models, pictures, closing
        self._limits, self._clock = limits, clock
        self._passing = Passing()
        self._poked = asyncio.Event()
        self._lost = True  # the broker may lack jobs that SQL has as sent
        self._told: dict[str, Queued] = {}
        self._told_at = 0.0

    def poke(self) -> None:
        """Wake the dispatcher: something changed."""
        self._poked.set()

    async def lost(self) -> None:
        """Publish everything again, since the broker was away."""
        self._lost = True
        self.poke()

    async def prepare(self) -> None:
        """Load models, jobs and workers before the first request. Raises `Unreachable` and `Unavailable`."""
        await self._models.load()
        await self._closing.reload()
        self._bus.on_return(self.lost)
        await self._bus.watch_workers(self.poke)

    async def run(self) -> None:
        """Dispatch until cancelled. An outage of broker or database is waited out."""
        while True:
            self._poked.clear()
            try:
                await self.round()
            except (Unreachable, Unavailable) as error:
                log.warning("dispatch: %s", error)
                self._lost = True
                await asyncio.sleep(NAP_SECONDS)
            except Malformed as error:  # a corrupt row: the next round begins by failing it
                log.error("dispatch: %s", error)
                self._lost = True
            try:
                async with asyncio.timeout(NAP_SECONDS):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def round(self) -> None:
        """Dispatch all that fits now. Raises `Unreachable` and `Unavailable`."""
        if self._lost:
            await self._bus.declare()  # at the reconnection this may have failed on a full disk
            await self.republish()
            self._lost = False
        await self._models.refresh()
        together = self._forecast.together = await self._store.ask(rules.together)
        for crew in crews(self._bus.workers).values():
            while moved := await self._next(crew, together):
                self._board.put(moved.record, self._clock())
                await self._submit_or_fail(moved.record)
        await self._tell()

    async def _next(self, crew: Crew, together: Together) -> Moved | None:
        """Mark the pool's next job as sent in SQL, and return the transition."""
        now = self._clock()
        warm = self._passing.warm(crew.pool, crew.loaded, now)
        wish = Wish(
            crew.pool, crew.models, self._limits.running, together=together, passing=self._passing,
            spare=self._board.spare(crew.pool, crew.rows, crew.free, now),
            warm=None if crew.models <= warm else crew.models & warm,
        )  # fmt: skip
        return await self._store.pick(wish, crew.rows, overbook(crew.rows), now)

    async def republish(self) -> None:
        """Submit every sent or running job again; the broker ignores those that it has.

        Skips a job with waiting results, since it may be done. A job that was claimed before the broker lost its store
        is submitted all the same: its claim is lost, and its worker has stopped.
        """
        reported, first = await self._bus.reported(), await self._bus.first_epoch()
        for record in await self._closing.reload():
            if not record.cancelling and (record.id not in reported or 0 < record.epoch < first):
                await self._submit_or_fail(record)

    async def _submit_or_fail(self, record: Record) -> None:
        """Submit a job, or fail it, so that a job which cannot be published does not block those behind it."""
        try:
            with about(record.id):
                await self.submit(record)
        except (Unreachable, Unavailable):
            raise
        except Exception:
            log.exception("job %s: cannot be handed to a worker", record.id)
            await self._closing.fail(record.id, "It could not be handed to a worker.", "us")

    async def submit(self, record: Record) -> None:
        """Publish this attempt, with its input pictures. Idempotent. Raises `Unreachable`."""
        try:
            for sha256 in sources(record.task):
                await self._bus.put_blob(await self._pictures.get(sha256))
        except Missing:
            await self._closing.fail(record.id, GONE, "us")
            return
        except Unreachable:
            raise
        except OSError as error:  # the patrol submits it again; the jobs behind it do not wait
            log.warning("job %s: not sent yet: %s", record.id, error)
            return
        if await self._bus.dispatch(self._newest(record)) and record.state == "running":
            log.warning("job %s: the broker had lost it, and it begins again", record.id)
        if self._feed.watched(record.id):
            await self._bus.want(record.id)
        log.info("job %s: sent, attempt %d", record.id, record.attempt)

    def _newest(self, record: Record) -> Job:
        """Return the wire value. A job that has not started uses its model's current weights."""
        job = record.job()
        if isinstance(job.task, Recipe) and not record.step:
            with suppress(KeyError):
                made, notes = renewed(job.task, self._models.profile(job.task.model))
                if notes:
                    log.warning("job %s: %s", record.id, notes[0])
                return msgspec.structs.replace(job, task=made)
        return job

    async def _tell(self) -> None:
        """Publish the changed places of waiting jobs, if anybody listens."""
        now = self._clock()
        if not self._feed.heard or now - self._told_at < TELL_SECONDS:
            return
        self._told_at = now
        outlook = await self._forecast.outlook()
        told = {job: self._queued(job, spot) for job, spot in outlook.spots.items()}
        for job, queued in told.items():
            if not _alike(self._told.get(job), queued):
                self._feed.publish(queued)
        self._told = told

    def _queued(self, job: str, spot: Spot) -> Queued:
        return Queued(job, spot.ahead, self._forecast.wait(spot), self._forecast.starting(spot.pool, spot.model))


def _alike(old: Queued | None, new: Queued) -> bool:
    """Return True if a member would see no difference: the same place, and an ETA within 10 %."""
    if old is None or (old.place, old.starting) != (new.place, new.starting):
        return False
    before, after = old.eta, new.eta
    return before == after or (before is not None and after is not None and abs(before - after) <= 0.1 * before)
