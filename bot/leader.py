"""One bot is at work, the others stand by: a lease on the broker elects, a term in SQL fences off the one before.

The lease alone would not do: a bot that was stopped, or that the broker cannot reach, does not see it end. So the one
that is elected begins a term in SQL, waits until the one before must have noticed, and only then opens. Whoever leads
proves it several times a second, by renewing the lease or by reading its term; where neither was possible for a while,
not even one turn of the event loop is run before the term was read once more. Whoever lost the lead ends as if killed,
which costs nothing that is not found again.

A bot with a broker of its own has no lease, and there may be bots on other brokers: so nobody begins a term while the
one before still counts in SQL (`bot.heartbeat`), which it does as long as it has its lease. Who lost it is not heard.

Knows the lease and the term; nothing of what a leader does.
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
TRUST_SECONDS = 1.5  # a term that was read is believed for so long
NOTICE_SECONDS = 2.0  # more than that: what a bot before us has to find out that it is over
PATIENCE_SECONDS = 3.0  # for one look at the database while everything stands still
DEPOSED = 75  # EX_TEMPFAIL: started anew, it stands by, or is refused while the other lives
ELSEWHERE = (
    "The bot at work on this broker ({name}) has another database: set DATABASE_URL to that one's, and PICTURES_URL to "
    "storage that both reach."
)


def leave(why: str) -> None:
    """At once, and nothing is tidied up: what is half done belongs to somebody else."""
    log.critical("%s This process ends, and opens no more while the other one lives.", why)
    logging.shutdown()
    os._exit(DEPOSED)


class Leader:
    """Made by `leading`; `begin` it with the store before anything works. `lost` ends the process."""

    def __init__(self, lead: Leases | None, name: str, url: str, lost: Callable[[str], None]) -> None:
        self._lead, self._name, self._url, self._lost = lead, name, url, lost
        self._claim: Claim | None = None
        self._store: Store | None = None
        self._leased = 0.0  # so long nobody else can have the lease
        self._until = 0.0  # so long nobody else can have begun
        self._turned = now()
        self._looks = ThreadPoolExecutor(1, "lead")  # reads the term while the event loop stands still
        self._before: set[str] = set()  # who had the lease before us
        self._same = ""  # the id of the store that they and we share

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What must run while we lead."""
        lease = {} if self._lead is None else {"lead": self.renew(self._lead)}
        return {**lease, "term": self.read(), "beat": self.beat()}

    async def elected(self, say: Callable[[str], None]) -> None:
        """Returns when the lease is ours. `say` hears whom we wait for. Raises `Refused` if its store is another."""
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
        """A holder's name has the id of its store behind it, once it has opened that."""
        name, _, theirs = holder.worker.partition(".") if holder else ("", "", "")
        if theirs and self._url and theirs != self._same:
            if theirs != await identity(self._url):
                raise Refused(ELSEWHERE.format(name=name), 400)
            self._same = theirs
        if not self._before:
            say(f"Another bot is at work on this broker{name and f' ({name})'}: this one stands by.")
        self._before.add(name)

    async def begin(self, store: Store) -> None:
        """From now on the store refuses whoever led before, who has had time to notice. Raises as `_free` does."""
        before = await self._free(store)
        asked = now()
        if (ours := await store.begin(self._name, after=before.term)) is None:  # another one was faster: it is heard
            return await self.begin(store)
        self._store, self._until = store, max(self._until, asked + TRUST_SECONDS)
        self._name = f"{self._name}.{ours.store}"
        if self._claim is not None:
            self._claim.worker = self._name  # the next renewal says it
        if not before.over:
            log.info("took over: the one before has %.1f s to notice", NOTICE_SECONDS)
            await asyncio.sleep(NOTICE_SECONDS)
        store.resigns = True  # not before: whoever came at once then would know nothing of the one before

    async def _free(self, store: Store) -> Term:
        """The newest term, whose holder does not lead any more. Raises `Unavailable`, and `Refused` where it does."""
        before = await store.ask(terms.newest)
        if not (before.over or before.holder in self._before) and await heard(store):
            name = f" ({before.holder})" if before.holder else ""
            raise Refused(f"Another bot is at work on this database{name}: stop it first, or set DATABASE_URL.")
        return before

    def end(self) -> None:
        """Its store closes: nothing works any more."""
        self._store = None

    async def renew(self, lead: Leases) -> None:
        """Keeps the lease for ever; while the broker is away, the term alone says whether we lead."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            asked = now()
            try:
                if self._claim is None or not await lead.renew(self._claim):
                    await self._again(lead)
                    continue
            except (Unreachable, Unavailable) as error:
                log.warning("the lead cannot be kept now: %s", error)
                continue
            self._held(asked + lead.seconds)

    async def _again(self, lead: Leases) -> None:
        """The lease is gone: ours once more if nobody began meanwhile: the broker lost it, or a worker hides it."""
        if not await self._take(lead):
            if await lead.holder() is not None:  # else what hides it comes faster than we write: the term alone says
                self._lost("Another bot has taken the lead.")
        elif self._store is not None and not await self._store.leads():
            self._lost("Another bot has led meanwhile.")

    async def beat(self) -> None:
        """Counts for ever, while nobody else can have the lease."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if self._store is None or (self._lead is not None and now() > self._leased):
                continue
            try:
                await self._store.live()
            except Unavailable as error:
                log.debug("no beat: %s", error)

    async def read(self) -> None:
        """Looks at the term for ever, so that the look before a turn need not."""
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                await self._confirm()
            except Unavailable as error:
                log.warning("the lead cannot be looked up now: %s", error)

    def look(self) -> None:
        """Before each turn of the event loop: where nothing has shown for a while that we lead, everything stands still
        until the term was read. Without a lease only after the process itself stood still: while the database is away
        nobody else begins, and nothing is written.
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
                self._lost("Neither the broker nor the database says that this bot still leads.")

    async def _confirm(self) -> None:
        """Raises `Unavailable`."""
        asked, store = now(), self._store
        if store is None:
            return
        if await store.leads():
            self._until = max(self._until, asked + TRUST_SECONDS)
        elif store is self._store:
            self._lost("Another bot has begun to write to this database.")

    async def resign(self) -> None:
        """Whoever stands by goes on at once."""
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
    """Waits until we lead; then keeps the lead beside the body. What the body raises comes out as itself.

    `bus`: where the lease is; None: the term alone decides. `url`: of the database, which all that stand by must share.
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
    """`look` runs before each turn of this event loop, where it is one of ours."""
    loop = asyncio.get_running_loop()
    turns = loop.turns if isinstance(loop, Loop) else Turns()
    turns.look = look
    try:
        yield
    finally:
        turns.look = None
