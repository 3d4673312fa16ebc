"""The only publisher of work: hands jobs to the broker in fair order, no more than live workers have room for.

It sleeps until it is poked (a job came, one ended, a worker changed). Recorded first, submitted after: what the broker
does not have, SQL knows, and `republish` brings it back. Knows the store and the bus; nothing of front ends.
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

MOST_BEYOND, BEYOND = 12.0, 96  # newcomers beyond the rows of the workers: as a share of them, and rows
NAP_SECONDS = 1.0  # when nobody pokes
TELL_SECONDS = 1.0  # queue places are told at most this often


def overbook(rows: int) -> float:
    """How far newcomers may go beyond a pool's rows, as a share of them.

    A pool of few rows has room for a grid or two: there nine who come at once would wait for one another's last step
    before they see a first one. Of many rows some are free soon, so there it is the rows again at the most.
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
        self._lost = True  # the broker may lack what SQL says it has
        self._told: dict[str, Queued] = {}
        self._told_at = 0.0

    def poke(self) -> None:
        """Something changed: look at once."""
        self._poked.set()

    async def lost(self) -> None:
        """The broker was away: publish everything again."""
        self._lost = True
        self.poke()

    async def prepare(self) -> None:
        """Know what is under way and who is there, before anyone asks. Raises `Unreachable` and `Unavailable`."""
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
            except Malformed as error:  # a row spoilt under our hands: the next round begins with a weeding
                log.error("dispatch: %s", error)
                self._lost = True
            try:
                async with asyncio.timeout(NAP_SECONDS):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def round(self) -> None:
        """Everything that is to be done now. Raises `Unreachable` and `Unavailable`."""
        if self._lost:
            await self._bus.declare()  # at a reconnection that may have failed: the disk was full
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
        """The pool's next job, sent as far as SQL is concerned."""
        now = self._clock()
        warm = self._passing.warm(crew.pool, crew.loaded, now)
        wish = Wish(
            crew.pool, crew.models, self._limits.running, together=together, passing=self._passing,
            spare=self._board.spare(crew.pool, crew.rows, crew.free, now),
            warm=None if crew.models <= warm else crew.models & warm,
        )  # fmt: skip
        return await self._store.pick(wish, crew.rows, overbook(crew.rows), now)

    async def republish(self) -> None:
        """Give the broker every admitted, unfinished job again; those that it has are not doubled.

        One of which reports wait may be done, and only not yet taken in. Not where the broker lost its store since it
        was claimed: then the claim is lost, and whoever reported has stopped.
        """
        reported, first = await self._bus.reported(), await self._bus.first_epoch()
        for record in await self._closing.reload():
            if not record.cancelling and (record.id not in reported or 0 < record.epoch < first):
                await self._submit_or_fail(record)

    async def _submit_or_fail(self, record: Record) -> None:
        """One job that cannot be published is its own misfortune, not that of the jobs behind it."""
        try:
            with about(record.id):
                await self.submit(record)
        except (Unreachable, Unavailable):
            raise
        except Exception:
            log.exception("job %s: cannot be handed to a worker", record.id)
            await self._closing.fail(record.id, "It could not be handed to a worker.", "us")

    async def submit(self, record: Record) -> None:
        """Publish this attempt, with the pictures that it starts from. Idempotent. Raises `Unreachable`."""
        try:
            for sha256 in sources(record.task):
                await self._bus.put_blob(await self._pictures.get(sha256))
        except Missing:
            await self._closing.fail(record.id, GONE, "us")
            return
        except Unreachable:
            raise
        except OSError as error:  # the patrol submits it again, and the jobs behind it need not wait for that
            log.warning("job %s: not sent yet: %s", record.id, error)
            return
        if await self._bus.dispatch(self._newest(record)) and record.state == "running":
            log.warning("job %s: the broker had lost it, and it begins again", record.id)
        if self._feed.watched(record.id):
            await self._bus.want(record.id)
        log.info("job %s: sent, attempt %d", record.id, record.attempt)

    def _newest(self, record: Record) -> Job:
        """The wire value. What waited while its model changed, and was not begun, is made with the weights of now."""
        job = record.job()
        if isinstance(job.task, Recipe) and not record.step:
            with suppress(KeyError):
                made, notes = renewed(job.task, self._models.profile(job.task.model))
                if notes:
                    log.warning("job %s: %s", record.id, notes[0])
                return msgspec.structs.replace(job, task=made)
        return job

    async def _tell(self) -> None:
        """Tell who listens where each waiting job stands, if that changed."""
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
    """True if a member would see no difference: the same place, and the end within a tenth of what was said."""
    if old is None or (old.place, old.starting) != (new.place, new.starting):
        return False
    before, after = old.eta, new.eta
    return before == after or (before is not None and after is not None and abs(before - after) <= 0.1 * before)
