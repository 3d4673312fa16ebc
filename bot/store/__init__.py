"""The store: the record of every job, owner, charge and place. All SQL of the house lives in this package.

SQLite in a file or PostgreSQL on a server, by URL (`database`): what was committed survives a power cut. One
transaction for each transition; those that wait together share a commit (`batch`). They are plain functions of a
connection (`moves`, `reads`), each run as a whole on a thread of the store's own: a hop between event loop and driver
at every statement would cost more than the statements.
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
RESIGN_SECONDS = 3.0  # for the last word to a database that may be away


async def identity(url: str) -> str:
    """The id of the store at a URL, as it is now: nothing is brought up to date. Empty where it has none. Raises
    `Refused` and `Unavailable`.
    """
    database = await asyncio.to_thread(database_at, url)
    try:
        return await database.read(terms.identity)
    finally:
        await database.close()


class Store:
    """Open it by `Store.open`, close it by `close`. `version` grows with every change that can move the queue.

    `weights`: tier → weight in the fair order beside the other tiers, for those that are not 1.
    """

    def __init__(self, database: Database, weights: Mapping[str, float] = WEIGHTS) -> None:
        self.database, self._weights = database, weights
        self.version = 0
        self._term: int | None = None  # none: nobody else writes here
        self.resigns = False  # whether, once this is closed, nobody needs to wait before the next term

    @classmethod
    async def open(cls, url: str, weights: Mapping[str, float] = WEIGHTS) -> Store:
        """Open the database at a URL and bring its tables up to date. Raises `Refused` and `Unavailable`."""
        store = cls(await asyncio.to_thread(database_at, url), weights)
        try:
            await store.database.upgrade(upgrade)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Finish what has begun, end our term in order, then close every connection."""
        if self._term is not None and self.resigns:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(RESIGN_SECONDS):
                    await self.database.write(lambda connection, term=self._term: terms.end(connection, term))
        await self.database.close()

    async def write(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Run `act` as one transaction that may write, whole or not at all; it is committed when this returns."""

        def fenced(connection: Connection) -> T:
            if self._term is not None:
                terms.check(connection, self._term)
            return act(connection, *args, **options)

        return await self.database.write(fenced)

    async def begin(self, holder: str = "", after: int | None = None) -> Term | None:
        """We are the one bot that writes: from now on an earlier one is refused, as we are when a later one begins.

        None, and nothing is begun, where the newest term is not `after`.
        """
        ours = await self.database.write(lambda connection: terms.begin(connection, holder, after))
        self._term = self._term if ours is None else ours.term
        return ours

    async def leads(self) -> bool:
        """True if no later bot has begun."""
        return (await self.ask(terms.newest)).term == self._term

    async def live(self) -> None:
        """Whoever would be next sees that we are there. Raises `Deposed`."""
        if self._term is not None:
            await self.write(terms.live, self._term)

    async def _move(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """As `write`, for what may move the queue: None says that nothing did."""
        done = await self.write(act, *args, **options)
        if done is not None:
            self.version += 1
        return done

    async def ask(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Ask one of `bot.store.reads`: `await store.ask(reads.newest, guild, 50)`. One look at the tables."""
        return await self.database.read(lambda connection: question(connection, *args, **options))

    async def admit(
        self, drafts: Sequence[Draft], key: str | None, decide: moves.Decide, now: float
    ) -> tuple[list[Record], bool]:
        """`decide` reads the ledger and raises `Refused`, or all drafts that it returns are written with their places.

        A known `key` gives the jobs that it made; True if they were made now. `decide` runs on the store's thread.
        """
        return await self._move(moves.admit, drafts, key, decide, self._weights, now)

    async def pick(self, wish: Wish, rows: int, overbook: float, now: float) -> Moved | None:
        """Send the next job in fair order that the pool's `rows` have room for; None if there is none."""
        return await self._move(moves.pick, wish, rows, overbook, now)

    async def start(
        self, job: str, epoch: int, worker: str, step: int, now: float, *, seen: int = 0, forgotten: bool = False
    ) -> Moved | None:
        """A worker began or went on at `step`; failed after too many attempts without progress (see the record)."""
        return await self._move(moves.start, job, epoch, worker, step, now, seen=seen, forgotten=forgotten)

    async def requeue(
        self, job: str, now: float, *, step: int, why: str, reason: str = "", epoch: int | None = None
    ) -> Moved | None:
        """Back into the queue as the next attempt, or failed after too many without progress (see the record)."""
        return await self._move(moves.requeue, job, now, step=step, why=why, reason=reason, epoch=epoch)

    async def end(
        self, kind: Move, job: str, now: float, spent: float | None, *,
        epoch: int | None = None, why: str = "", **values: object,
    ) -> Moved | None:  # fmt: skip
        """Finish, fail or cancel; the charge is settled to `spent` in the same transaction."""
        return await self._move(moves.end, kind, job, now, spent, epoch=epoch, why=why, **values)

    async def reroute(self, job: str, pool: str, now: float) -> Record | None:
        """A waiting job waits in another pool; None if that changed nothing."""
        return await self._move(rerouting.reroute, job, pool, self._weights, now)

    async def wish(self, job: str, now: float) -> tuple[Record | None, Moved | None]:
        """Cancel a waiting job, or note the wish on one that was sent; the job now, and the transition."""
        return await self._move(moves.wish, job, now)

    async def keep(self, one: Stored, epoch: int, now: float, method: Method | None = None) -> bool:
        """Note a finished picture; of an enlargement, `method` is how it was really made.

        False: the job is unknown or over, or a newer epoch has it.
        """
        return (await self.take_in(one.job, epoch, [one], None, now, method))[0]

    async def take_in(
        self, job: str, epoch: int, found: Sequence[Stored], end: End | None, now: float, method: Method | None = None
    ) -> tuple[bool, Moved | None]:
        """Note pictures of one job, and finish it if `end` says so and none is missing; as one transaction.

        False: the job is unknown, deleted or over, or a newer epoch has it.
        """
        kept, moved = await self.write(completion.take_in, job, epoch, found, end, now, method=method)
        self.version += moved is not None
        return kept, moved

    async def remember(self, warm: Warm, pool: str, now: float) -> None:
        """Keep a model's profile for times when no worker is alive."""
        await self.write(writes.remember, warm, pool, now)

    async def record(self, job: str) -> Record | None:
        """One job."""
        return (await self.ask(reads.some, [job])).get(job)
