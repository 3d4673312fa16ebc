"""Deletes all data of a member: jobs, pictures, messages and preferences, however long it takes and whatever fails.

A deletion request is a row in SQL until it is complete. `run` works on all of them, job by job. Each step is visible in
the tables, so the work goes on after any crash. A front end deletes the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from bot.desk.retention import emptied
from bot.feed import Feed, Settled
from bot.sentences import DELETED
from bot.states import over
from bot.store import Store, Stored, Unavailable, export, forgetting, keeping, places
from bot.store.forgetting import Departure
from bot.store.keeping import Why
from bot.views import Delivery
from engine.job import Malformed

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0  # the command line writes requests beside this process
ROUND_SECONDS = 1.0  # while a job has still to stop
LONGEST_PAUSE = 60.0  # while everything left waits for a front end
WHYS: tuple[Why, ...] = ("forgotten", "enlarged")
Remove = Callable[[str, Delivery], Awaitable[bool]]


class Forgetting:
    """Deletes members' data, for the bot and for the command line.

    A front end sets `take_away` to delete a message of a job: it returns False if the message must stay, and raises
    ConnectionError if that has to wait. `waits`: until it is set, jobs with messages wait for it.
    """

    def __init__(
        self, store: Store, cancel: Callable[[str], Awaitable[object]],
        empty: Callable[[Sequence[Stored]], Awaitable[None]], feed: Feed, *,
        waits: bool, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._cancel, self._empty, self._feed = store, cancel, empty, feed
        self._waits, self._clock = waits, clock
        self.take_away: Remove | None = None
        self._wanted = asyncio.Event()

    async def ask(self, member: str, guild: str = "") -> int:
        """Begin to delete a member's data, everywhere or in one guild; return the number of jobs. Idempotent."""
        about = await self._store.write(forgetting.depart, Departure(member, guild, self._clock()))
        self._wanted.set()
        return about

    async def about(self, member: str) -> int:
        """Return how many jobs of a member are stored."""
        return await self._store.ask(export.amount, member)

    async def under_way(self, member: str) -> bool:
        """Return whether a member's deletion is unfinished."""
        return any(one.member == member for one in await self._store.ask(forgetting.under_way))

    async def run(self) -> None:
        """Work on deletion requests until cancelled."""
        pause = LOOK_SECONDS
        while True:
            self._wanted.clear()
            stopping, left = False, True
            try:
                stopping = await self.round()
                left = bool(await self._store.ask(forgetting.under_way))
            except (Unavailable, OSError) as error:
                log.warning("forgetting: %s", error)
            pause = ROUND_SECONDS if stopping else min(2 * pause, LONGEST_PAUSE) if left else LOOK_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

    async def round(self) -> bool:
        """Do everything that can be done now; return True if a job has still to stop. Work for a front end waits
        longer.
        """
        wishes = await self._store.ask(forgetting.under_way)
        for one in wishes:
            while await self._store.write(forgetting.take, one, self._clock()):
                pass
        stopping = await self._jobs()
        for one in wishes:
            await self._store.write(forgetting.forget, one)
            await self._store.write(forgetting.finish, one)
        return stopping

    async def _jobs(self) -> bool:
        after, stopping = "", False
        while found := await self._store.ask(keeping.going, WHYS, after):
            whys = dict(found)
            stopped = [job for job in whys if await self._stopped(job)]
            await emptied(self._store, self._empty, list(whys))
            await self._close([job for job in stopped if await self._unshown(job)], whys)
            after, stopping = found[-1][0], stopping or len(stopped) < len(whys)
        return stopping

    async def _close(self, ready: Sequence[str], whys: Mapping[str, Why]) -> None:
        """Remove rows; rows of others' upscales stay with their owners."""
        await self._store.write(keeping.drop, [job for job in ready if whys[job] == "forgotten"], self._clock())
        await self._store.write(forgetting.settled, [job for job in ready if whys[job] == "enlarged"])

    async def _stopped(self, job: str) -> bool:
        """Return whether a job has ended, readable or not; else cancel it and look again in the next round."""
        state = await self._store.ask(forgetting.state, job)
        if state is None:
            return True
        if over(state):
            self._feed.publish(Settled(job, state, DELETED))
            return True
        try:
            await self._cancel(job)
        except (Malformed, TypeError) as error:  # ended as a corrupt row: at the start, or by the dispatcher
            log.error("job %s: it is open, and its row cannot be read: %s", job, error)
        return False

    async def _unshown(self, job: str) -> bool:
        """Delete a job's messages; return whether none is left."""
        for role, one in await self._store.ask(places.all_of, job):
            if one.place.kind != "discord" or not one.message:
                continue
            if self.take_away is None:
                if self._waits:
                    return False
                continue
            try:
                if not await self.take_away(job, one):
                    log.info("job %s: one of its messages stays: Discord does not let us delete it", job)
            except ConnectionError as error:
                log.warning("job %s: %s", job, error)
                return False
            await self._store.write(forgetting.messages_gone, job, role)
        return True
