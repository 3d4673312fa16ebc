"""The PostgreSQL driver: one thread with the only connection for writes, and a few reader threads.

A caller on any event loop makes one hop per transaction, as on SQLite.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
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
from bot.store.drivers.postgres.connection import MIGRATION_TIMEOUTS, Timeouts, begin, create_postgres_engine
from bot.store.drivers.postgres.errors import describe_error, is_outage

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 4
POLL_SECONDS = 0.1  # between two tries to learn the outcome of a commit


class PostgresDatabase:
    """A `Database` on a server."""

    def __init__(self, url: str, timeouts: Timeouts | None = None) -> None:
        self._url = url
        self._timeouts = timeouts or Timeouts()
        self.writer = create_postgres_engine(url, self._timeouts, 1)
        self.reader = create_postgres_engine(url, self._timeouts, READERS, is_reader=True)
        self._operations = OperationQueue()
        self._writer_name = str(ULID())
        self._commit_number = 0
        self._write_thread = ThreadPoolExecutor(1, "store-writer")
        self._read_threads = ThreadPoolExecutor(READERS, "store-reader")

    async def run_write(self, operation: Operation[T]) -> T:
        """Run `operation` and return its result once it is committed. Raises what `operation` raises, or
        `DatabaseUnavailable`.
        """
        future = self._operations.put(operation)
        self._write_thread.submit(self._commit_next_batch)
        return await asyncio.wrap_future(future)

    async def run_read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot of the tables; it may run twice. Raises what `operation` raises, or
        `DatabaseUnavailable`.
        """
        deadline = time.monotonic() + self._timeouts.lock
        return await asyncio.wrap_future(self._read_threads.submit(self._run_read, operation, deadline))

    async def upgrade(self, operation: Operation[None]) -> None:
        """Run `operation` like `write`, and wait long for it and for other processes."""
        await asyncio.wrap_future(self._write_thread.submit(self._run_migration, operation))

    async def truncate_log(self) -> bool:
        """Do nothing: the server reuses its log by itself."""
        return True

    async def close(self) -> None:
        """Finish pending transactions, then end the threads and close their connections."""
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self.writer.dispose()
        self.reader.dispose()

    def _commit_next_batch(self) -> None:
        """Commit the next batch of waiting operations. A call may find none left."""
        pending = self._operations.take_batch()
        if not pending:
            return
        batch = CommitBatch(pending, is_outage)
        self._commit_number += 1
        commit_id = CommitId(self._writer_name, self._commit_number)
        is_commit_sent = False
        try:
            with begin(self.writer, commit_log.lock_writers)[0] as connection:
                if commit_id.number == 1:
                    commit_log.delete_old_commits(connection, time.time())
                batch.run(connection)
                commit_log.record_commit(connection, commit_id, time.time())
                is_commit_sent = True
                connection.commit()
        except BaseException as error:
            if is_commit_sent and self._is_committed(commit_id):
                batch.resolve_all()
            else:
                batch.fail_all(error, describe_error(error))
        else:
            batch.resolve_all()

    def _is_committed(self, commit_id: CommitId) -> bool:
        """Return whether a commit with a lost reply happened; False also if the server does not return in time."""
        deadline = time.monotonic() + self._timeouts.commit_check
        while True:
            try:
                with begin(self.writer, commit_log.lock_writers)[0] as connection:
                    return commit_log.is_committed(connection, commit_id)
            except Exception as error:
                if time.monotonic() > deadline or not is_outage(error):
                    log.error("cannot tell whether the last commit happened: %s", describe_error(error))
                    return False
            time.sleep(POLL_SECONDS)

    def _run_read(self, operation: Operation[T], deadline: float) -> T:
        def run_and_commit(connection: Connection) -> T:
            result = operation(connection)
            connection.commit()  # after a rollback psycopg would prepare every statement anew
            return result

        if time.monotonic() > deadline:
            raise DatabaseUnavailable("The database cannot be used now: every connection was busy for too long.")
        try:
            connection, result = begin(self.reader, run_and_commit)
        except StopIteration as error:
            raise wrap_stop_iteration(error) from error
        except Exception as error:
            if not is_outage(error):
                raise
            raise DatabaseUnavailable(f"The database cannot be used now: {describe_error(error)}.") from error
        connection.close()
        return result

    def _run_migration(self, operation: Operation[None]) -> None:
        engine = create_postgres_engine(self._url, MIGRATION_TIMEOUTS, 1)
        try:
            with begin(engine, commit_log.lock_writers)[0] as connection:
                operation(connection)
                connection.commit()
        except (DBAPIError, DatabaseUnavailable) as error:  # such as a role without the right to create tables
            raise DatabaseUnavailable(f"The database cannot be used now: {describe_error(error)}.") from error
        finally:
            engine.dispose()
