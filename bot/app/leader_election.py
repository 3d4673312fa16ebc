"""Leader election: a lease on the broker elects one bot, and a growing term in SQL rejects writes of an old leader.

The lease alone is not enough: a suspended bot, or one without a connection to the broker, does not see its lease end.
So a new leader begins a term in SQL, waits until the old leader must have noticed, and only then opens. Several times a
second a leader proves that it leads: it renews the lease or reads its term. If both fail for a while, the event loop
runs nothing until it has read the term again. A bot that lost the lead exits as if killed. That loses nothing: the bot
recovers from a crash at any moment.

A bot with its own broker has no lease, and other bots may use other brokers. So a bot begins no term while the old
leader's heartbeat in SQL still counts up (`bot.app.leader_election`). A leader counts up as long as it has its lease.

Leader heartbeats in SQL: the leader counts up, and a standby watches the count to see whether it lives.

Never compares the clocks of two machines. Uses the store, not the lease.

An event loop that calls a hook before each iteration, however long the process was suspended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import selectors
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from bot.domain.concurrency import run_periodically
from bot.domain.errors import UserError
from bot.store import DatabaseUnavailable, LeaderTerm, Store, leader_terms, read_store_id
from engine.bus import BrokerUnreachable, Bus, Claim, ClaimHolder
from engine.bus.claims import open_leader_lease

if TYPE_CHECKING:
    from engine.bus.claims import LeaderLease

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # between two tries to get the lease
RENEW_SECONDS = 1.0
CONFIRM_SECONDS = 0.5
PROOF_SECONDS = 1.5  # how long a term counts as proof after it was read
NOTICE_SECONDS = 2.0  # above TRUST_SECONDS: how long an old leader has to notice that it lost the lead
BLOCKING_SECONDS = 3.0  # for one read of the term while the event loop is blocked
EXIT_CODE = 75  # EX_TEMPFAIL: after a restart it stands by, or is refused while the other bot lives
OTHER_DATABASE = (
    "The bot that leads on this broker ({name}) has another database: set DATABASE_URL to that one's, and "
    "DARKROOM_PICTURES_URL to storage that both reach."
)


def exit_process(reason: str) -> None:
    """Exit at once without cleanup: another bot owns the unfinished work now."""
    log.critical("%s This process exits; it cannot lead again while the other bot runs.", reason)
    logging.shutdown()
    os._exit(EXIT_CODE)


class Leader:
    """Leads while the lease and the term last. Created by `keep_lead`; call `begin_term` with the store before anything
    else.

    `on_lost` ends the process.
    """

    def __init__(
        self, lease_client: LeaderLease | None, name: str, database_url: str, on_lost: Callable[[str], None]
    ) -> None:
        self._lease_client = lease_client
        self._name = name
        self._database_url = database_url
        self._on_lost = on_lost
        self._claim: Claim | None = None
        self._store: Store | None = None
        self._lease_until = 0.0  # until then no other bot can have the lease
        self._proven_until = 0.0  # until then no other bot can have begun a term
        self._checked_at = boot_seconds()
        self._confirm_thread = ThreadPoolExecutor(1, "confirm-term")  # reads the term while the event loop is blocked
        self._earlier_holders: set[str] = set()  # earlier holders of the lease
        self._shared_store_id = ""  # the id of the store that the leader and this bot share

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that must run while this bot leads."""
        lease = {} if self._lease_client is None else {"renew-lease": self.renew_lease(self._lease_client)}
        return {**lease, "confirm-term": self.confirm_periodically(), "heartbeat": self.write_heartbeats()}

    async def wait_elected(self, announce: Callable[[str], None]) -> None:
        """Wait until the lease is ours. `announce` receives a sentence about the current leader.

        Raises `UserError` if the leader uses another database.
        """
        while self._lease_client is not None:
            try:
                if await self._take_lease(self._lease_client):
                    return
                await self._announce_leader(await self._lease_client.get_holder(), announce)
            except (BrokerUnreachable, DatabaseUnavailable) as error:
                log.warning("standing by: %s", error)
            await asyncio.sleep(POLL_SECONDS)

    async def _take_lease(self, lease_client: LeaderLease) -> bool:
        asked_at = boot_seconds()
        self._claim = await lease_client.acquire(self._name)
        if self._claim is not None:
            self._note_lease(asked_at + lease_client.seconds)
        return self._claim is not None

    def _note_lease(self, until: float) -> None:
        self._lease_until, self._proven_until = until, max(self._proven_until, until)

    async def _announce_leader(self, holder: ClaimHolder | None, announce: Callable[[str], None]) -> None:
        """Check and announce the lease's holder. Its name ends with its store's id once it has opened the store."""
        name, _, store_id = holder.worker.partition(".") if holder else ("", "", "")
        if store_id and self._database_url and store_id != self._shared_store_id:
            if store_id != await read_store_id(self._database_url):
                raise UserError(OTHER_DATABASE.format(name=name), 400)
            self._shared_store_id = store_id
        if not self._earlier_holders:
            announce(f"Another bot leads on this broker{name and f' ({name})'}: this one stands by.")
        self._earlier_holders.add(name)

    async def begin_term(self, store: Store) -> None:
        """Begin a term: from now on the store rejects the old leader's writes. Waits until the old leader must have
        noticed.

        Raises as `_read_free_term` does.
        """
        old_term = await self._read_free_term(store)
        asked_at = boot_seconds()
        if (
            new_term := await store.begin_term(self._name, expected_term=old_term.term)
        ) is None:  # another bot was faster: listen for it
            return await self.begin_term(store)
        self._store, self._proven_until = store, max(self._proven_until, asked_at + PROOF_SECONDS)
        self._name = f"{self._name}.{new_term.store}"
        if self._claim is not None:
            self._claim.worker = self._name  # the next renewal writes the store's id
        if not old_term.is_ended:
            log.info("took over: the old leader has %.1f s to notice", NOTICE_SECONDS)
            await asyncio.sleep(NOTICE_SECONDS)
        store.ends_term_on_close = True  # not earlier: a bot that follows at once would not know of the old leader

    async def _read_free_term(self, store: Store) -> LeaderTerm:
        """Return the newest term. Raises `DatabaseUnavailable`, and `UserError` if its holder still leads."""
        newest = await store.query(leader_terms.read_newest_term)
        if not (newest.is_ended or newest.holder in self._earlier_holders) and await is_leader_alive(store):
            name = f" ({newest.holder})" if newest.holder else ""
            raise UserError(f"Another bot leads on this database{name}: stop it first, or set DATABASE_URL.")
        return newest

    def note_close(self) -> None:
        """Note that the store closes and nothing works any more."""
        self._store = None

    async def renew_lease(self, lease_client: LeaderLease) -> None:
        """Renew the lease for ever. While the broker is unreachable, the term alone decides whether this bot leads."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            asked_at = boot_seconds()
            try:
                if self._claim is None or not await lease_client.renew(self._claim):
                    await self._retake_lease(lease_client)
                    continue
            except (BrokerUnreachable, DatabaseUnavailable) as error:
                log.warning("cannot renew the lease now: %s", error)
                continue
            self._note_lease(asked_at + lease_client.seconds)

    async def _retake_lease(self, lease_client: LeaderLease) -> None:
        """Take a lost lease again, if no other bot began meanwhile: the broker lost it, or a worker hides it."""
        if not await self._take_lease(lease_client):
            if (
                await lease_client.get_holder() is not None
            ):  # else a worker hides it faster than we write it: the term decides
                self._on_lost("Another bot has taken the lead.")
        elif self._store is not None and not await self._store.is_leader():
            self._on_lost("Another bot has led meanwhile.")

    async def write_heartbeats(self) -> None:
        """Write a heartbeat to SQL for ever, while no other bot can have the lease."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if self._store is None or (self._lease_client is not None and boot_seconds() > self._lease_until):
                continue
            try:
                await self._store.record_heartbeat()
            except DatabaseUnavailable as error:
                log.debug("no heartbeat: %s", error)

    async def confirm_periodically(self) -> None:
        """Read the term for ever, so that `check_lead` rarely has to."""
        await run_periodically(
            self._confirm_term, CONFIRM_SECONDS, "cannot read the leader term now", log, pauses_first=True
        )

    def check_lead(self) -> None:
        """Check the lead before each iteration of the event loop: if there is no recent proof, block until the term is
        read.

        Without a lease it checks only after the process itself was suspended: while the database is unreachable, no
        other bot begins, and nothing is written.
        """
        last_check = self._checked_at
        self._checked_at = boot_seconds()
        if self._store is None or boot_seconds() <= self._proven_until:
            return
        if self._lease_client is None and self._checked_at - last_check < PROOF_SECONDS:
            return
        try:
            self._confirm_thread.submit(asyncio.run, self._confirm_term()).result(BLOCKING_SECONDS)
        except (TimeoutError, DatabaseUnavailable):
            if self._lease_client is not None:
                self._on_lost("Neither the broker nor the database confirms that this bot still leads.")

    async def _confirm_term(self) -> None:
        """Read the term and note that this bot leads. Raises `DatabaseUnavailable`."""
        asked_at = boot_seconds()
        store = self._store
        if store is None:
            return
        if await store.is_leader():
            self._proven_until = max(self._proven_until, asked_at + PROOF_SECONDS)
        elif store is self._store:
            self._on_lost("Another bot has begun to write to this database.")

    async def release_lease(self) -> None:
        """Release the lease, so that a standby takes over at once."""
        self._confirm_thread.shutdown(wait=False)
        if self._lease_client is not None and self._claim is not None:
            try:
                await self._lease_client.release(self._claim)
            except BrokerUnreachable as error:
                log.debug("%s", error)


@asynccontextmanager
async def keep_lead(
    bus: Bus | None,
    announce: Callable[[str], None],
    *,
    database_url: str = "",
    on_lost: Callable[[str], None] = exit_process,
) -> AsyncGenerator[Leader]:
    """Wait until this bot leads, then keep the lead beside the body. An error of the body passes through unchanged.

    `bus`: where the lease is; None: the term alone decides. `database_url`: the database, which all standbys must
    share.
    """
    leader = Leader(
        None if bus is None else open_leader_lease(bus.js, bus.limits.leader_lease),
        process_name(),
        database_url,
        on_lost,
    )
    body_error = None
    async with asyncio.TaskGroup() as group:
        tasks = [] if bus is None else [group.create_task(bus.wait_closed(), name="bus")]
        try:
            await leader.wait_elected(announce)
            tasks += [group.create_task(task, name=name) for name, task in leader.tasks().items()]
            with _guard_loop(leader.check_lead):
                yield leader
        except Exception as error:
            body_error = error
        finally:
            while pending := [task for task in tasks if not task.done()]:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=1.0)
            await leader.release_lease()
    if body_error is not None:
        raise body_error


@contextmanager
def _guard_loop(check_lead: Callable[[], None]) -> Generator[None]:
    """Run `check_lead` before each iteration of this event loop, if it is a `WatchdogLoop`."""
    loop = asyncio.get_running_loop()
    selector = loop.selector if isinstance(loop, WatchdogLoop) else WatchdogSelector()
    selector.before_iteration = check_lead
    try:
        yield
    finally:
        selector.before_iteration = None


HEARTBEAT_SECONDS = 1.0
DEAD_SECONDS = 2.5  # a leader without a heartbeat for so long is dead, or no longer leads
PROOF_BEATS = 3  # heartbeats that prove a leader alive; a leader that has just lost its lease may write one more


def process_name() -> str:
    """Return this process's name among bots: machine, process id and a random word, since containers share process ids.

    It still fits into a lease's holder name when the store's id is appended.
    """
    machine = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()[:20])
    return f"bot-{machine}-{os.getpid()}-{secrets.token_hex(2)}"


async def is_leader_alive(store: Store) -> bool:
    """Return whether a bot leads now. Raises `DatabaseUnavailable`."""
    term = await store.query(leader_terms.read_newest_term)
    beat_count = 0
    deadline = boot_seconds() + DEAD_SECONDS
    while not term.is_ended and boot_seconds() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        newest = await store.query(leader_terms.read_newest_term)
        if newest != term:
            term = newest
            beat_count = beat_count + 1
            deadline = boot_seconds() + DEAD_SECONDS
        if beat_count == PROOF_BEATS:
            return True
    return False


class WatchdogSelector(selectors.DefaultSelector):
    """A selector that calls `before_iteration` after each wait, before the event loop runs anything."""

    def __init__(self) -> None:
        super().__init__()
        self.before_iteration: Callable[[], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        if self.before_iteration is not None:
            self.before_iteration()
        return ready


class WatchdogLoop(asyncio.SelectorEventLoop):
    """The event loop of a process that may lead."""

    def __init__(self) -> None:
        self.selector = WatchdogSelector()
        super().__init__(self.selector)


def boot_seconds() -> float:
    """Return seconds of a clock that also runs while the machine sleeps, if the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
