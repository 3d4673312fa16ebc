"""The store: the record of every job, owner, charge and place. All SQL of the house lives in this package.

SQLite in WAL with `synchronous=FULL`: what was committed survives a power cut. One transaction for each transition;
those that wait together share a commit (`writer`). They are plain functions of a connection (`moves`, `reads`), each
run as a whole on a thread of the store's own: a hop between event loop and driver at every statement would cost more
than the statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Concatenate, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from bot.states import Move
from bot.store import moves, reads, writes
from bot.store.accounts import Wish
from bot.store.engines import engines
from bot.store.records import RELAXED, Draft, Moved, Record, Stored
from bot.store.writer import Unavailable, Writer
from engine.job import Method, Warm

__all__ = ["Draft", "Moved", "Record", "Store", "Stored", "Unavailable", "Wish"]

T = TypeVar("T")
P = ParamSpec("P")

WEIGHTS: Mapping[str, float] = MappingProxyType({RELAXED: 0.25})
READERS = 2
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


class Store:
    """Open it by `Store.open`, close it by `close`. `version` grows with every change that can move the queue.

    `weights`: tier → weight in the fair order beside the other tiers, for those that are not 1.
    """

    def __init__(self, writer: Engine, reader: Engine, weights: Mapping[str, float] = WEIGHTS) -> None:
        self._writer, self._reader, self._weights = Writer(writer), reader, weights
        self._reads = ThreadPoolExecutor(READERS, "store-reader")
        self.version = 0

    @classmethod
    async def open(cls, url: str, weights: Mapping[str, float] = WEIGHTS) -> Store:
        """Open the database at a SQLAlchemy URL and bring its tables up to date."""
        store = cls(*await asyncio.to_thread(engines, url, READERS), weights)
        await store.write(_upgrade)
        return store

    async def close(self) -> None:
        """Finish what has begun, then close every connection."""
        await self._writer.close()
        await asyncio.to_thread(self._reads.shutdown)
        self._reader.dispose()

    async def write(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Run `act` as one transaction that may write, whole or not at all; it is committed when this returns."""
        return await self._writer.run(lambda connection: act(connection, *args, **options))

    async def _move(self, act: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """As `write`, for what may move the queue: None says that nothing did."""
        done = await self.write(act, *args, **options)
        if done is not None:
            self.version += 1
        return done

    async def ask(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Ask one of `bot.store.reads`: `await store.ask(reads.newest, guild, 50)`. One look at the tables."""
        act = partial(_transaction, self._reader, question, args, options)
        return await asyncio.get_running_loop().run_in_executor(self._reads, act)

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

    async def start(self, job: str, epoch: int, worker: str, step: int, now: float, *, seen: int = 0) -> Moved | None:
        """A worker began or went on at `step`; failed after too many attempts without progress (see the record)."""
        return await self._move(moves.start, job, epoch, worker, step, now, seen=seen)

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

    async def wish(self, job: str, now: float) -> tuple[Record | None, Moved | None]:
        """Cancel a waiting job, or note the wish on one that was sent; the job now, and the transition."""
        return await self._move(moves.wish, job, now)

    async def keep(self, one: Stored, epoch: int, now: float, method: Method | None = None) -> bool:
        """Note a finished picture; of an enlargement, `method` is how it was really made.

        False: the job is unknown or over, or a newer epoch has it.
        """
        return await self.write(writes.keep, one, epoch, now, method)

    async def remember(self, warm: Warm, pool: str, now: float) -> None:
        """Keep a model's profile for times when no worker is alive."""
        await self.write(writes.remember, warm, pool, now)

    async def record(self, job: str) -> Record | None:
        """One job."""
        return (await self.ask(reads.some, [job])).get(job)


def _transaction(engine: Engine, act: Callable[..., T], args: Sequence[object], options: Mapping[str, object]) -> T:
    try:
        with engine.begin() as connection:
            return act(connection, *args, **options)
    except OperationalError as error:
        raise Unavailable(f"The database cannot be used now: {error.orig}.") from error


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
