"""The PostgreSQL driver: one thread with its own event loop, one connection for writes and a few for reads.

It runs the same plain functions of a connection as SQLite: SQLAlchemy gives them a connection that looks synchronous
(greenlet) and waits on asyncpg underneath. A caller on any event loop makes one hop per transaction.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from ulid import ULID

from bot.store.drivers.group_commit import (
    CommitBatch,
    DatabaseUnavailable,
    Operation,
    OperationQueue,
    wrap_stop_iteration,
)
from bot.store.drivers.postgres import commit_log
from bot.store.drivers.postgres.commit_log import CommitId
from bot.store.drivers.postgres.connection import MIGRATION_TIMEOUTS, Timeouts, create_pool
from bot.store.drivers.postgres.errors import describe_error, is_outage
from bot.store.drivers.postgres.pool import run_read, write_transaction

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 4
READ_OPTIONS = {"isolation_level": "REPEATABLE READ", "execution_options": {"postgresql_readonly": True}}
CLOSE_SECONDS = 5.0
POLL_SECONDS = 0.1  # between two tries to learn the outcome of a commit


class PostgresDatabase:
    """A `Database` on a server."""

    def __init__(self, url: str, timeouts: Timeouts | None = None) -> None:
        self._url, self._timeouts = url, timeouts or Timeouts()
        self._write_pool = create_pool(url, self._timeouts, 1, {})
        self._read_pool = create_pool(url, self._timeouts, READERS, READ_OPTIONS)
        self.writer, self.reader = self._write_pool.sync_engine, self._read_pool.sync_engine
        self._operations, self._writer_name, self._commit_number = OperationQueue(), str(ULID()), 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_committing = False
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="store", daemon=True)
        self._thread.start()

    async def run_write(self, operation: Operation[T]) -> T:
        """Run `operation` and return its result once it is committed. Raises what `operation` raises, or
        `DatabaseUnavailable`.
        """
        future = self._operations.put(operation)
        self._loop.call_soon_threadsafe(self._start_writing)
        return await asyncio.wrap_future(future)

    async def run_read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot of the tables; it may run twice. Raises what `operation` raises, or
        `DatabaseUnavailable`.
        """
        return await self._run_on_loop(lambda: self._run_read(operation))

    async def upgrade(self, operation: Operation[None]) -> None:
        """Run `operation` like `write`, and wait long for it and for other processes. Raises `UserError` for a wrong
        URL.
        """
        await self._run_on_loop(lambda: self._run_migration(operation))

    async def close(self) -> None:
        """Finish pending transactions, close every connection and end the thread."""
        await self._run_on_loop(self._close_pools)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _run_on_loop(self, start_work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run on the store's loop. Cancelling the caller does not stop running work: that would cost a connection."""
        future: Future[T] = Future()

        async def resolve_future() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(await start_work())
                except BaseException as error:
                    future.set_exception(wrap_stop_iteration(error))

        self._loop.call_soon_threadsafe(self._start_task, resolve_future)
        return await asyncio.wrap_future(future)

    def _start_task(self, start_work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(start_work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_writing(self) -> None:
        if not self._is_committing:
            self._is_committing = True
            self._start_task(self._write_batches)

    async def _write_batches(self) -> None:
        """Commit waiting operations, batch after batch, until none is left."""
        try:
            while pending := self._operations.take_batch():
                await self._commit_batch(CommitBatch(pending, is_outage))
        finally:
            self._is_committing = False

    async def _commit_batch(self, batch: CommitBatch) -> None:
        self._commit_number += 1
        commit_id, is_commit_sent = CommitId(self._writer_name, self._commit_number), False
        try:
            async with write_transaction(self._write_pool) as connection:
                if commit_id.number == 1:
                    await connection.run_sync(commit_log.delete_old_commits, time.time())
                await connection.run_sync(batch.run)
                await connection.run_sync(commit_log.record_commit, commit_id, time.time())
                is_commit_sent = True
                await connection.commit()
        except BaseException as error:
            if is_commit_sent and await self._is_committed(commit_id):
                batch.resolve_all()
            else:
                batch.fail_all(error, describe_error(error))
        else:
            batch.resolve_all()

    async def _is_committed(self, commit_id: CommitId) -> bool:
        """Return whether a commit with a lost reply happened; False also if the server does not return in time."""
        deadline = self._loop.time() + self._timeouts.commit_check
        while True:
            try:
                async with write_transaction(self._write_pool) as connection:
                    return await connection.run_sync(commit_log.is_committed, commit_id)
            except Exception as error:
                if self._loop.time() > deadline or not is_outage(error):
                    log.error("cannot tell whether the last commit happened: %s", describe_error(error))
                    return False
            await asyncio.sleep(POLL_SECONDS)

    async def _run_read(self, operation: Operation[T]) -> T:
        try:
            return await run_read(self._read_pool, operation)
        except Exception as error:
            if not is_outage(error):
                raise
            raise DatabaseUnavailable(f"The database cannot be used now: {describe_error(error)}.") from error

    async def _run_migration(self, operation: Operation[None]) -> None:
        migration_pool = create_pool(self._url, MIGRATION_TIMEOUTS, 1, {})
        try:
            async with write_transaction(migration_pool) as connection:
                await connection.run_sync(operation)
                await connection.commit()
        except (DBAPIError, DatabaseUnavailable) as error:  # such as a role without the right to create tables
            raise DatabaseUnavailable(f"The database cannot be used now: {describe_error(error)}.") from error
        finally:
            await _dispose_pool(migration_pool)

    async def _close_pools(self) -> None:
        other_tasks = self._tasks - {asyncio.current_task()}
        if other_tasks:
            await asyncio.wait(other_tasks)
        await _dispose_pool(self._write_pool)
        await _dispose_pool(self._read_pool)


async def _dispose_pool(pool: AsyncEngine) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await pool.dispose()
