"""The store: all SQL of the bot. It records jobs, owners, charges and destinations.

The URL selects SQLite in a file or PostgreSQL on a server (`database`). A committed change survives a power cut. Each
transition is one transaction; transactions that wait together share a commit (`batch`). Transactions are plain
functions of a connection (`moves`, `reads`). Each runs as a whole on the store's thread: one hop between event loop and
driver for every statement would cost more than the statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from bot.states import Move
from bot.store import completion, moves, reads, rerouting, terms, writes
from bot.store.accounts import Wish
from bot.store.batch import Unavailable
from bot.store.completion import End
from bot.store.database import Database, database_at
from bot.store.records import RELAXED, Draft, Moved, Record, Stored
from bot.store.terms import Deposed, Term
from bot.store.upgrading import upgrade
from engine.job import Method, Warm

__all__ = ["Deposed", "Draft", "End", "Moved", "Record", "Store", "Stored", "Term", "Unavailable", "Wish", "identity"]

T = TypeVar("T")
P = ParamSpec("P")

WEIGHTS: Mapping[str, float] = MappingProxyType({RELAXED: 0.25})
RESIGN_SECONDS = 3.0  # to end the leader term at shutdown; the database may be away


async def identity(url: str) -> str:
    """Return the id of the store at a URL, or an empty string where it has none. Runs no migration. Raises `Refused`
    and `Unavailable`.
    """
    database = await asyncio.to_thread(database_at, url)
    try:
        return await database.read(terms.identity)
    finally:
        await database.close()


class Store:
    """Facade over the database; open it with `Store.open`. `version` grows with every change that can move the queue.

    `weights`: tier → weight in the fair order, for tiers whose weight is not 1.
    """

    def __init__(self, database: Database, weights: Mapping[str, float] = WEIGHTS) -> None:
        self.database, self._weights = database, weights
        self.version = 0
        self._term: int | None = None  # our leader term; None: no fencing, nobody else writes here
        self.resigns = False  # True: `close` ends our term, so the next leader need not wait

    @classmethod
    async def open(cls, url: str, weights: Mapping[str, float] = WEIGHTS) -> Store:
        """Open the database at a URL and migrate its tables. Raises `Refused` and `Unavailable`."""
        store = cls(await asyncio.to_thread(database_at, url), weights)
        try:
            await store.database.upgrade(upgrade)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Finish pending transactions, end our leader term, then close every connection."""
        if self._term is not None and self.resigns:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(RESIGN_SECONDS):
                    await self.database.write(lambda connection, term=self._term: terms.end(connection, term))
        await self.database.close()

    async def write(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Run `act` as one write transaction. It is committed when this returns."""

        def fenced(connection: Connection) -> T:
            if self._term is not None:
                terms.check(connection, self._term)
            return act(connection, *args, **options)

        return await self.database.write(fenced)

    async def begin(self, holder: str = "", after: int | None = None) -> Term | None:
        """Begin our leader term: from now on writes of earlier leaders are refused, and ours once a later term begins.

        None: the newest term is not `after`, and no term was begun.
        """
        ours = await self.database.write(lambda connection: terms.begin(connection, holder, after))
        self._term = self._term if ours is None else ours.term
        return ours

    async def leads(self) -> bool:
        """Return True if no later leader term has begun."""
        return (await self.ask(terms.newest)).term == self._term

    async def live(self) -> None:
        """Record a heartbeat for the standbys to see. Raises `Deposed`."""
        if self._term is not None:
            await self.write(terms.live, self._term)

    async def _move(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Run `write`, and raise `version` unless `act` returns None (nothing changed)."""
        done = await self.write(act, *args, **options)
        if done is not None:
            self.version += 1
        return done

    async def ask(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Run a read function in one snapshot of the tables: `await store.ask(reads.newest, guild, 50)`."""
        return await self.database.read(lambda connection: question(connection, *args, **options))

    async def admit(
        self, drafts: Sequence[Draft], key: str | None, decide: moves.Decide, now: float
    ) -> tuple[list[Record], bool]:
        """Write the jobs that `decide` returns, with their destinations; True: they are new.

        `decide` runs on the store's thread, reads the ledger and raises `Refused` to write nothing. A known idempotency
        `key` returns the jobs that it made earlier, and False.
        """
        return await self._move(moves.admit, drafts, key, decide, self._weights, now)

    async def pick(self, wish: Wish, rows: int, overbook: float, now: float) -> Moved | None:
        """Mark the next job in fair order as sent if the pool's `rows` have room for it; None if there is none."""
        return await self._move(moves.pick, wish, rows, overbook, now)

    async def start(
        self, job: str, epoch: int, worker: str, step: int, now: float, *, seen: int = 0, forgotten: bool = False
    ) -> Moved | None:
        """Record a start at `step`, or fail the job after too many attempts without progress (see the record)."""
        return await self._move(moves.start, job, epoch, worker, step, now, seen=seen, forgotten=forgotten)

    async def requeue(
        self, job: str, now: float, *, step: int, why: str, reason: str = "", epoch: int | None = None
    ) -> Moved | None:
        """Queue the job again as its next attempt, or fail it after too many without progress (see the record)."""
        return await self._move(moves.requeue, job, now, step=step, why=why, reason=reason, epoch=epoch)

    async def end(
        self, kind: Move, job: str, now: float, spent: float | None, *,
        epoch: int | None = None, why: str = "", **values: object,
    ) -> Moved | None:  # fmt: skip
        """Finish, fail or cancel a job, and settle its charge to `spent` in the same transaction."""
        return await self._move(moves.end, kind, job, now, spent, epoch=epoch, why=why, **values)

    async def reroute(self, job: str, pool: str, now: float) -> Record | None:
        """Move a waiting job to another pool; None if nothing changed."""
        return await self._move(rerouting.reroute, job, pool, self._weights, now)

    async def wish(self, job: str, now: float) -> tuple[Record | None, Moved | None]:
        """Cancel a waiting job, or flag a sent one as cancelling. Return the job now, and the transition."""
        return await self._move(moves.wish, job, now)

    async def keep(self, one: Stored, epoch: int, now: float, method: Method | None = None) -> bool:
        """Record a finished picture. `method`: how the worker really made an upscale.

        False: the job is unknown or over, or a newer epoch has it.
        """
        return (await self.take_in(one.job, epoch, [one], None, now, method))[0]

    async def take_in(
        self, job: str, epoch: int, found: Sequence[Stored], end: End | None, now: float, method: Method | None = None
    ) -> tuple[bool, Moved | None]:
        """Record pictures of one job, and finish it if `end` is given and none is missing. One transaction.

        False: the job is unknown, deleted or over, or a newer epoch has it.
        """
        kept, moved = await self.write(completion.take_in, job, epoch, found, end, now, method=method)
        self.version += moved is not None
        return kept, moved

    async def remember(self, warm: Warm, pool: str, now: float) -> None:
        """Store a model's profile for times when no worker is online."""
        await self.write(writes.remember, warm, pool, now)

    async def record(self, job: str) -> Record | None:
        """Return one job, or None."""
        return (await self.ask(reads.some, [job])).get(job)
