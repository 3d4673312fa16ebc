"""The store: all SQL of the bot. It records jobs, owners, charges and destinations.

The URL selects SQLite in a file or PostgreSQL on a server (`bot.store.drivers.database`). A committed change survives a
power cut. Each transition is one transaction; transactions that wait together share a commit
(`bot.store.drivers.database`). Transactions are plain functions of a connection (`bot.store.transitions`,
`bot.store.jobs.queries`). Each runs as a whole on the store's thread: one hop between event loop and driver for every
statement would cost more than the statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from bot.store import leader_terms
from bot.store.drivers.database import select_driver
from bot.store.drivers.group_commit import Database, DatabaseUnavailable
from bot.store.fairness.accounts import PickRequest
from bot.store.jobs import queries
from bot.store.jobs.records import JobRecord, NewJob, StoredPicture, Transition
from bot.store.leader_terms import LeaderTerm, NotLeader
from bot.store.schema.migration import migrate_tables
from bot.store.transitions import job_admin, job_transitions, job_writes
from bot.store.transitions.job_transitions import JobStats
from engine.contract import ModelProfile, UpscaleMethod

__all__ = [
    "DatabaseUnavailable",
    "JobRecord",
    "JobStats",
    "LeaderTerm",
    "NewJob",
    "NotLeader",
    "PickRequest",
    "Store",
    "StoredPicture",
    "Transition",
    "read_store_id",
]

T = TypeVar("T")
P = ParamSpec("P")

END_TERM_SECONDS = 3.0  # seconds to end the leader term at shutdown; the database may be away


async def read_store_id(url: str) -> str:
    """Return the id of the store at a URL, or an empty string where it has none. Runs no migration. Raises `UserError`
    and `DatabaseUnavailable`.
    """
    database = await asyncio.to_thread(select_driver, url)
    try:
        return await database.run_read(leader_terms.read_store_id)
    finally:
        await database.close()


def _write_transition(
    operation: Callable[Concatenate[Connection, P], T],
) -> Callable[Concatenate[Store, P], Coroutine[Any, Any, T]]:
    """Return a method that runs `operation` as one write transaction, and notes a result other than None as a change of
    the queue.
    """

    async def run(store: Store, *args: P.args, **kwargs: P.kwargs) -> T:
        result = await store.write(operation, *args, **kwargs)
        store.version += result is not None
        return result

    return wraps(operation)(run)


class Store:
    """Facade over the database; open it with `Store.open`. `version` grows with each change that can move the queue."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.version = 0
        self._term: int | None = None  # our leader term; None: no fencing, no other bot writes here
        self.ends_term_on_close = False  # True: `close` ends our term, so the next leader need not wait

    @classmethod
    async def open(cls, url: str) -> Store:
        """Open the database at a URL and migrate its tables. Raises `UserError` and `DatabaseUnavailable`."""
        store = cls(await asyncio.to_thread(select_driver, url))
        try:
            await store.database.upgrade(migrate_tables)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Finish pending transactions, end our leader term, then close every connection."""
        if self._term is not None and self.ends_term_on_close:
            with suppress(DatabaseUnavailable, TimeoutError):
                async with asyncio.timeout(END_TERM_SECONDS):
                    await self.database.run_write(
                        lambda connection, term=self._term: leader_terms.end_term(connection, term)
                    )
        await self.database.close()

    async def write(self, operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `operation` as one write transaction. It is committed when this returns."""

        def run_fenced(connection: Connection) -> T:
            if self._term is not None:
                leader_terms.check_term(connection, self._term)
            return operation(connection, *args, **kwargs)

        return await self.database.run_write(run_fenced)

    async def begin_term(self, holder: str = "", expected_term: int | None = None) -> LeaderTerm | None:
        """Begin our leader term: from now on writes of earlier leaders are refused, and ours once a later term begins.

        None: the newest term is not `expected_term`, and no term was begun.
        """
        new_term = await self.database.run_write(
            lambda connection: leader_terms.begin_term(connection, holder, expected_term)
        )
        self._term = self._term if new_term is None else new_term.term
        return new_term

    async def is_leader(self) -> bool:
        """Return True if no later leader term has begun."""
        return (await self.query(leader_terms.read_newest_term)).term == self._term

    async def record_heartbeat(self) -> None:
        """Record a heartbeat for the standbys to see. Raises `NotLeader`."""
        if self._term is not None:
            await self.write(leader_terms.record_heartbeat, self._term)

    async def query(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a read function in one snapshot of the tables: `await store.query(queries.list_newest, guild, 50)`."""
        return await self.database.run_read(lambda connection: query(connection, *args, **kwargs))

    start_job = _write_transition(job_transitions.start_job)
    requeue_job = _write_transition(job_transitions.requeue_job)
    end_job = _write_transition(job_transitions.end_job)
    request_cancel = _write_transition(job_transitions.request_cancel)
    pick_job = _write_transition(job_transitions.pick_job)
    admit_jobs = _write_transition(job_transitions.admit_jobs)
    reroute_job = _write_transition(job_admin.reroute_job)

    async def record_picture(
        self, picture: StoredPicture, epoch: int, now: float, method: UpscaleMethod | None = None
    ) -> bool:
        """Record a finished picture. `method`: how the worker really made an upscale.

        False: the job is unknown or over, or a newer epoch has it.
        """
        return (await self.record_pictures(picture.job, epoch, [picture], None, now, method))[0]

    async def record_pictures(
        self,
        job: str,
        epoch: int,
        pictures: Sequence[StoredPicture],
        stats: JobStats | None,
        now: float,
        method: UpscaleMethod | None = None,
    ) -> tuple[bool, Transition | None]:
        """Record pictures of one job, and finish it if `stats` is given and none is missing. One transaction.

        False: the job is unknown, deleted or over, or a newer epoch has it.
        """
        accepted, transition = await self.write(
            job_transitions.record_pictures, job, epoch, pictures, stats, now, method=method
        )
        self.version += transition is not None
        return accepted, transition

    async def save_model(self, model: ModelProfile, pool: str, now: float) -> None:
        """Store a model's profile for times when no worker is online."""
        await self.write(job_writes.save_model, model, pool, now)

    async def get_job(self, job: str) -> JobRecord | None:
        """Return one job, or None."""
        return (await self.query(queries.get_jobs, [job])).get(job)
