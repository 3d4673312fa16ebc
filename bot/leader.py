"""Leader election: a lease on the broker elects one bot, and a growing term in SQL rejects writes of an old leader.

The lease alone is not enough: a bot that was suspended, or cut off from the broker, does not see its lease end. So a
new leader begins a term in SQL, waits until the old one must have noticed, and only then opens. A leader proves that it
leads several times a second: it renews the lease or reads its term. If neither was possible for a while, the event loop
runs nothing until the term was read again. A bot that lost the lead exits as if killed; nothing is lost by that, since
a crash at any moment is recoverable.

A bot with its own broker has no lease, and other bots may use other brokers. So a bot begins no term while the old
leader still counts in SQL (`bot.heartbeat`). A leader counts as long as it has its lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from bot.heartbeat import BEAT_SECONDS, heard, here
from bot.refused import Refused
from bot.store import Store, Term, Unavailable, identity, terms
from bot.turns import Loop, Turns, now
from engine.bus import Bus, Claim, Holder, Unreachable
from engine.bus.lead import leases

if TYPE_CHECKING:
    from engine.bus.leases import Leases

log = logging.getLogger(__name__)

GLANCE_SECONDS = 0.25  # between two tries to get the lease
RENEW_SECONDS = 1.0
READ_SECONDS = 0.5
TRUST_SECONDS = 1.5  # how long a term counts as proof after it was read
NOTICE_SECONDS = 2.0  # above TRUST_SECONDS: how long an old leader has to notice that it lost the lead
PATIENCE_SECONDS = 3.0  # for one read of the term while the event loop is blocked
DEPOSED = 75  # EX_TEMPFAIL: after a restart it stands by, or is refused while the other bot lives
ELSEWHERE = (
    "The bot at work on this broker ({name}) has another database: set DATABASE_URL to that one's, and PICTURES_URL to "
    "storage that both reach."
)


def leave(why: str) -> None:
    """Exit at once without cleanup: another bot owns the unfinished work now."""
    log.critical("%s This process exits; it cannot lead again while the other bot runs.", why)
    logging.shutdown()
    os._exit(DEPOSED)


class Leader:
    """Leads while the lease and the term last. Created by `leading`; call `begin` with the store before anything works.

    `lost` ends the process.
    """

    def __init__(self, lead: Leases | None, name: str, url: str, lost: Callable[[str], None]) -> None:
        self._lead, self._name, self._url, self._lost = lead, name, url, lost
        self._claim: Claim | None = None
        self._store: Store | None = None
        self._leased = 0.0  # until then no other bot can have the lease
        self._until = 0.0  # until then no other bot can have begun a term
        self._turned = now()
        self._looks = ThreadPoolExecutor(1, "lead")  # reads the term while the event loop is blocked
        self._before: set[str] = set()  # earlier holders of the lease
        self._same = ""  # the id of the store that the leader and this bot share

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that must run while this bot leads."""
        lease = {} if self._lead is None else {"lead": self.renew(self._lead)}
        return {**lease, "term": self.read(), "beat": self.beat()}

    async def elected(self, say: Callable[[str], None]) -> None:
        """Wait until the lease is ours. `say` receives a sentence about the current leader.

        Raises `Refused` if the leader uses another database.
        """
        while self._lead is not None:
            try:
                if await self._take(self._lead):
                    return
                await self._stand_by(await self._lead.holder(), say)
            except (Unreachable, Unavailable) as error:
                log.warning("standing by: %s", error)
            await asyncio.sleep(GLANCE_SECONDS)

    async def _take(self, lead: Leases) -> bool:
        asked = now()
        self._claim = await lead.take(self._name)
        if self._claim is not None:
            self._held(asked + lead.seconds)
        return self._claim is not None

    def _held(self, until: float) -> None:
        self._leased, self._until = until, max(self._until, until)

    async def _stand_by(self, holder: Holder | None, say: Callable[[str], None]) -> None:
        """Check and announce the lease's holder. Its name ends with its store's id once it has opened the store."""
        name, _, theirs = holder.worker.partition(".") if holder else ("", "", "")
        if theirs and self._url and theirs != self._same:
            if theirs != await identity(self._url):
                raise Refused(ELSEWHERE.format(name=name), 400)
            self._same = theirs
        if not self._before:
            say(f"Another bot is at work on this broker{name and f' ({name})'}: this one stands by.")
        self._before.add(name)

    async def begin(self, store: Store) -> None:
        """Begin a term: from now on the store rejects the old leader's writes. Waits until the old leader must have
        noticed.

        Raises as `_free` does.
        """
        before = await self._free(store)
        asked = now()
        if (ours := await store.begin(self._name, after=before.term)) is None:  # another bot was faster: listen for it
            return await self.begin(store)
        self._store, self._until = store, max(self._until, asked + TRUST_SECONDS)
        self._name = f"{self._name}.{ours.store}"
        if self._claim is not None:
            self._claim.worker = self._name  # the next renewal says it
        if not before.over:
            log.info("took over: the old leader has %.1f s to notice", NOTICE_SECONDS)
            await asyncio.sleep(NOTICE_SECONDS)
        store.resigns = True  # not earlier: a bot that follows at once would not know of the old leader

    async def _free(self, store: Store) -> Term:
        """Return the newest term if its holder leads no more. Raises `Unavailable`, and `Refused` if it still leads."""
        before = await store.ask(terms.newest)
        if not (before.over or before.holder in self._before) and await heard(store):
            name = f" ({before.holder})" if before.holder else ""
            raise Refused(f"Another bot is at work on this database{name}: stop it first, or set DATABASE_URL.")
        return before

    def end(self) -> None:
        """Note that the store closes and nothing works any more."""
        self._store = None

    async def renew(self, lead: Leases) -> None:
        """Renew the lease for ever. While the broker is unreachable, the term alone decides whether this bot leads."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            asked = now()
            try:
                if self._claim is None or not await lead.renew(self._claim):
                    await self._again(lead)
                    continue
            except (Unreachable, Unavailable) as error:
                log.warning("cannot renew the lease now: %s", error)
                continue
            self._held(asked + lead.seconds)

    async def _again(self, lead: Leases) -> None:
        """Take a lost lease again, if no other bot began meanwhile: the broker lost it, or a worker hides it."""
        if not await self._take(lead):
            if await lead.holder() is not None:  # else a worker hides it faster than we write it: the term decides
                self._lost("Another bot has taken the lead.")
        elif self._store is not None and not await self._store.leads():
            self._lost("Another bot has led meanwhile.")

    async def beat(self) -> None:
        """Write a heartbeat to SQL for ever, while no other bot can have the lease."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if self._store is None or (self._lead is not None and now() > self._leased):
                continue
            try:
                await self._store.live()
            except Unavailable as error:
                log.debug("no heartbeat: %s", error)

    async def read(self) -> None:
        """Read the term for ever, so that `look` rarely has to."""
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                await self._confirm()
            except Unavailable as error:
                log.warning("cannot read the leader term now: %s", error)

    def look(self) -> None:
        """Check the lead before each iteration of the event loop: if it was not proven lately, block until the term was
        read.

        Without a lease it checks only after the process itself was suspended: while the database is unreachable, no
        other bot begins, and nothing is written.
        """
        before, self._turned = self._turned, now()
        if self._store is None or now() <= self._until:
            return
        if self._lead is None and self._turned - before < TRUST_SECONDS:
            return
        try:
            self._looks.submit(asyncio.run, self._confirm()).result(PATIENCE_SECONDS)
        except (TimeoutError, Unavailable):
            if self._lead is not None:
                self._lost("Neither the broker nor the database confirms that this bot still leads.")

    async def _confirm(self) -> None:
        """Read the term and note that this bot leads. Raises `Unavailable`."""
        asked, store = now(), self._store
        if store is None:
            return
        if await store.leads():
            self._until = max(self._until, asked + TRUST_SECONDS)
        elif store is self._store:
            self._lost("Another bot has begun to write to this database.")

    async def resign(self) -> None:
        """Release the lease, so that a standby takes over at once."""
        self._looks.shutdown(wait=False)
        if self._lead is not None and self._claim is not None:
            try:
                await self._lead.release(self._claim)
            except Unreachable as error:
                log.debug("%s", error)


@asynccontextmanager
async def leading(
    bus: Bus | None, say: Callable[[str], None], *, url: str = "", lost: Callable[[str], None] = leave
) -> AsyncIterator[Leader]:
    """Wait until this bot leads, then keep the lead beside the body. An error of the body is raised as itself.

    `bus`: where the lease is; None: the term alone decides. `url`: the database, which all standbys must share.
    """
    leader, raised = Leader(None if bus is None else leases(bus.js, bus.kept.leading), here(), url, lost), None
    async with asyncio.TaskGroup() as group:
        tasks = [] if bus is None else [group.create_task(bus.hold(), name="bus")]
        try:
            await leader.elected(say)
            tasks += [group.create_task(task, name=name) for name, task in leader.tasks().items()]
            with _watched(leader.look):
                yield leader
        except Exception as error:
            raised = error
        finally:
            while pending := [task for task in tasks if not task.done()]:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=1.0)
            await leader.resign()
    if raised is not None:
        raise raised


@contextmanager
def _watched(look: Callable[[], None]) -> Iterator[None]:
    """Run `look` before each iteration of this event loop, if it is a `Loop`."""
    loop = asyncio.get_running_loop()
    turns = loop.turns if isinstance(loop, Loop) else Turns()
    turns.look = look
    try:
        yield
    finally:
        turns.look = None
