"""One bot is at work, the others stand by: a lease on the broker elects, a term in SQL fences off the one before.

The lease alone would not do: a bot that was stopped, or that the broker cannot reach, does not see it end. So the one
that is elected begins a term in SQL, waits until the one before must have noticed, and only then opens. Whoever leads
proves it several times a second, by renewing the lease or by reading its term; where neither was possible for a while,
not even one turn of the event loop is run before the term was read once more. Whoever lost the lead ends as if killed,
which costs nothing that is not found again.

Knows the lease and the term; nothing of what a leader does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from bot.store import Store, Unavailable
from bot.turns import Loop, Turns, now
from engine.bus import Bus, Claim, Unreachable

log = logging.getLogger(__name__)

GLANCE_SECONDS = 0.25  # between two tries to get the lease
RENEW_SECONDS = 1.0
READ_SECONDS = 0.5
TRUST_SECONDS = 1.5  # a term that was read is believed for so long
NOTICE_SECONDS = 2.0  # more than that: what a bot before us has to find out that it is over
PATIENCE_SECONDS = 3.0  # for one look at the database while everything stands still
DEPOSED = 75  # EX_TEMPFAIL: started anew, it stands by


def leave(why: str) -> None:
    """At once, and nothing is tidied up: what is half done belongs to somebody else."""
    log.critical("%s This process ends, and stands by when it is started again.", why)
    logging.shutdown()
    os._exit(DEPOSED)


def here() -> str:
    """This process among bots: its machine and its number."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", f"bot-{socket.gethostname()[:48]}-{os.getpid()}")


class Leader:
    """Made by `leading`; `begin` it with the store before anything works. `lost` ends the process."""

    def __init__(self, bus: Bus, name: str, lost: Callable[[str], None]) -> None:
        self._bus, self._name, self._lost = bus, name, lost
        self._claim: Claim | None = None
        self._store: Store | None = None
        self._until = 0.0  # so long nobody else can have begun
        self._looks = ThreadPoolExecutor(1, "lead")  # reads the term while the event loop stands still
        self._waited = False

    async def elected(self, say: Callable[[str], None]) -> None:
        """Returns when the lease is ours. `say` hears once whom we wait for."""
        while True:
            try:
                if await self._take():
                    return
                if not self._waited:
                    self._waited = True
                    say(f"Another bot is at work on this broker{await self._who()}: this one stands by.")
            except Unreachable as error:
                log.warning("standing by: %s", error)
            await asyncio.sleep(GLANCE_SECONDS)

    async def _take(self) -> bool:
        asked = now()
        self._claim = await self._bus.lead.take(self._name)
        if self._claim is not None:
            self._until = asked + self._bus.lead.seconds
        return self._claim is not None

    async def _who(self) -> str:
        holder = await self._bus.lead.holder()
        return f" ({holder.worker})" if holder else ""

    async def begin(self, store: Store) -> None:
        """From now on the store refuses whoever led before. Raises `Unavailable`."""
        await store.begin()
        self._store = store
        if self._waited:
            log.info("took over: the one before has %.1f s to notice", NOTICE_SECONDS)
            await asyncio.sleep(NOTICE_SECONDS)

    def end(self) -> None:
        """Its store closes: nothing works any more."""
        self._store = None

    async def renew(self) -> None:
        """Keeps the lease for ever; while the broker is away, the term alone says whether we lead."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            asked = now()
            try:
                if self._claim is None or not await self._bus.lead.renew(self._claim):
                    await self._again()
                    continue
            except (Unreachable, Unavailable) as error:
                log.warning("the lead cannot be kept now: %s", error)
                continue
            self._until = max(self._until, asked + self._bus.lead.seconds)

    async def _again(self) -> None:
        """The lease is gone: ours once more if nobody began meanwhile, as when the broker lost its store."""
        if not await self._take():
            self._lost("Another bot has taken the lead.")
        elif self._store is not None and not await self._store.leads():
            self._lost("Another bot has led meanwhile.")

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
        until the term was read.
        """
        if self._store is None or now() <= self._until:
            return
        try:
            self._looks.submit(asyncio.run, self._confirm()).result(PATIENCE_SECONDS)
        except (TimeoutError, Unavailable):
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
        if self._claim is not None:
            try:
                await self._bus.lead.release(self._claim)
            except Unreachable as error:
                log.debug("%s", error)


@asynccontextmanager
async def leading(
    bus: Bus, say: Callable[[str], None], *, lost: Callable[[str], None] = leave
) -> AsyncIterator[Leader]:
    """Waits until we lead; then keeps the lead beside the body. What the body raises comes out as itself."""
    leader, raised = Leader(bus, here(), lost), None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bus.hold(), name="bus")]
        try:
            await leader.elected(say)
            tasks += [group.create_task(leader.renew(), name="lead"), group.create_task(leader.read(), name="term")]
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
