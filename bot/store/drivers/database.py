"""The interface of a database driver, the choice of a driver by URL, and the driver for SQLite.

SQLite has one thread with the only connection for writes, and a few reader threads.

Write transactions that wait for the database share one commit, each of them atomic: a commit waits for the disk, and a
busy evening has hundreds of transactions a second. Operations that arrive during a commit share the next one. Each runs
inside a savepoint, so an operation that raises undoes only itself. A caller gets a result only after its commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError, OperationalError

from bot.domain.errors import UserError

T = TypeVar("T")

Operation = Callable[[Connection], T]
PendingOperation = tuple[Operation[Any], "Future[Any]"]

MAX_BATCH = 32  # most operations in one commit


class DatabaseUnavailable(ConnectionError):
    """The database is full, locked or away: nothing was written, and it may work later."""


def unavailable(reason: str) -> DatabaseUnavailable:
    """Return the error with its sentence."""
    return DatabaseUnavailable(f"The database cannot be used now: {reason}.")


def wrap_stop_iteration(error: BaseException) -> BaseException:
    """Replace StopIteration, which a future cannot raise: its awaiter would never wake."""
    return RuntimeError("an operation raised StopIteration") if isinstance(error, StopIteration) else error


class CommitBatch:
    """Operations within one transaction. `is_outage` tells a fault of the database from one of an operation."""

    def __init__(self, pending: Sequence[PendingOperation], is_outage: Callable[[BaseException], bool]) -> None:
        self._pending = pending
        self._is_outage = is_outage
        self._results: dict[Future[Any], Any] = {}

    def run(self, connection: Connection) -> None:
        """Run the operations in order. Raises what ends the transaction: a fault of the database, or of the only
        operation.
        """
        for operation, future in self._pending:
            try:
                self._results[future] = (
                    operation(connection) if len(self._pending) == 1 else self._run_in_savepoint(connection, operation)
                )
            except BaseException as error:
                if len(self._pending) == 1 or self._is_outage(error):
                    raise
                future.set_exception(wrap_stop_iteration(error))

    def _run_in_savepoint(self, connection: Connection, operation: Operation[T]) -> T:
        """Run one of several operations in a savepoint. An exception undoes only this one."""
        connection.exec_driver_sql("SAVEPOINT act")
        try:
            result = operation(connection)
        except BaseException as error:
            if not self._is_outage(error):  # after an outage the database may have rolled everything back
                connection.exec_driver_sql("ROLLBACK TO SAVEPOINT act")
                connection.exec_driver_sql("RELEASE SAVEPOINT act")
            raise
        connection.exec_driver_sql("RELEASE SAVEPOINT act")
        return result

    def resolve_all(self) -> None:
        """Resolve every future with the result of its operation."""
        for future, result in self._results.items():
            future.set_result(result)

    def fail_all(self, error: BaseException, reason: str) -> None:
        """Fail every future. Each gets a separate exception, since raising one adds to its traceback."""
        if len(self._pending) == 1 and not self._is_outage(error):
            self._pending[0][1].set_exception(wrap_stop_iteration(error))
            return
        for _, future in self._pending:
            if not future.done():
                copy = unavailable(reason)
                copy.__cause__ = error
                future.set_exception(copy)


class Database(ABC):
    """Runs plain functions of a connection as transactions, on its own threads. `writer`, `reader`: the engines."""

    def __init__(self, writer: Engine, reader: Engine, reader_count: int) -> None:
        self.writer = writer
        self.reader = reader
        self._pending: deque[PendingOperation] = deque()
        self._write_thread = ThreadPoolExecutor(1, "store-writer")
        self._read_threads = ThreadPoolExecutor(reader_count, "store-reader")

    async def run_write(self, operation: Operation[T]) -> T:
        """Run `operation` and return its result once it is committed. Writers of all processes run one at a time, in
        the order of the calls. Raises what `operation` raises, or `DatabaseUnavailable`.
        """
        future: Future[T] = Future()
        self._pending.append((operation, future))
        self._write_thread.submit(self._commit_next_batch)
        return await asyncio.wrap_future(future)

    async def upgrade(self, operation: Operation[None]) -> None:
        """Run `operation` like `run_write`, for a migration that may take long."""
        await self.run_write(operation)

    @abstractmethod
    async def run_read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot of the tables; it may run twice. Raises what `operation` raises, or
        `DatabaseUnavailable`.
        """

    async def truncate_log(self) -> bool:
        """Empty the write-ahead log, where it is ours: the bytes of deleted rows are in it. False: not possible now."""
        return True

    async def close(self) -> None:
        """Finish pending transactions, then end the threads and close their connections."""
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self.writer.dispose()
        self.reader.dispose()

    def _commit_next_batch(self) -> None:
        """Commit the operations that share the next commit, without those whose caller gave up. There may be none."""
        batch: list[PendingOperation] = []
        while self._pending and len(batch) < MAX_BATCH:
            operation, future = self._pending.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((operation, future))
        if batch:
            self._commit(batch)

    @abstractmethod
    def _commit(self, pending: Sequence[PendingOperation]) -> None:
        """Commit these operations together, and give each its result or its error."""


DRIVER_MISSING = "DATABASE_URL names PostgreSQL, and its driver is not installed: pip install 'darkroom-bot[postgres]'."


def select_driver(url: str) -> Database:
    """Return the driver for a URL, not connected yet. Raises `UserError` where its package is missing or the
    URL is wrong.
    """
    if url.startswith("sqlite"):
        return SqliteDatabase(make_url(url))
    if find_spec("psycopg") is None:
        raise UserError(DRIVER_MISSING, 400)
    from bot.store.drivers.postgresql import PostgresDatabase

    return PostgresDatabase(url)


def find_sqlite_path(url: str) -> Path | None:
    """Return the path of an SQLite database; None for any other."""
    parsed_url = make_url(url)
    return Path(parsed_url.database or "") if parsed_url.get_backend_name() == "sqlite" else None


BUSY_TIMEOUT_MS = 10_000
LOG_TIMEOUT_MS = 500
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    "foreign_keys=ON",
    "secure_delete=ON",
)
READERS = 2


class SqliteDatabase(Database):
    """A `Database` in one file."""

    def __init__(self, url: URL) -> None:
        sqlite_url = url.set(drivername="sqlite")
        writer = _create_engine(sqlite_url, "BEGIN IMMEDIATE", 1)
        super().__init__(writer, _create_engine(sqlite_url, "BEGIN", READERS), READERS)

    async def run_read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot of the tables."""
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._run_read, operation)

    async def truncate_log(self) -> bool:
        """Copy the write-ahead log into the database file and empty it; False if a reader of another process is at it.

        Raises `DatabaseUnavailable`.
        """
        return await asyncio.wrap_future(self._write_thread.submit(self._truncate_log))

    def _commit(self, pending: Sequence[PendingOperation]) -> None:
        batch = CommitBatch(pending, is_outage)
        try:
            with self.writer.begin() as connection:
                batch.run(connection)
        except BaseException as error:
            batch.fail_all(error, _describe_error(error))
        else:
            batch.resolve_all()

    def _truncate_log(self) -> bool:
        try:
            with closing(self.writer.raw_connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute(f"PRAGMA busy_timeout={LOG_TIMEOUT_MS}")  # writers wait meanwhile
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                row: Any = cursor.fetchone()
                cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
                return row[0] == 0  # 1: busy
        except (DatabaseError, sqlite3.Error) as error:
            raise unavailable(_describe_error(error)) from error

    def _run_read(self, operation: Operation[T]) -> T:
        try:
            with self.reader.begin() as connection:
                return operation(connection)
        except StopIteration as error:
            raise wrap_stop_iteration(error) from error
        except DatabaseError as error:
            if not is_outage(error):
                raise
            raise unavailable(_describe_error(error)) from error


def is_outage(error: BaseException) -> bool:
    """Return True if the database is at fault: locked, full, missing, or not a database."""
    return isinstance(error, OperationalError) or type(error) is DatabaseError


def _describe_error(error: BaseException) -> str:
    return str(error.orig if isinstance(error, DatabaseError) else error)


def _create_engine(url: URL, begin_statement: str, pool_size: int) -> Engine:
    """Create an engine whose transactions begin with the statement `begin_statement`."""
    options = {"check_same_thread": False, "isolation_level": None}
    engine = create_engine(  # parameters are prompts and tokens: no error and no log shows them
        url, pool_size=pool_size, max_overflow=0, hide_parameters=True, connect_args=options
    )

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin_statement)

    return engine
