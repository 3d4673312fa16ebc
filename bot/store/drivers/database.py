"""The choice of a driver by URL, and the driver for SQLite: one connection for writes, and a few for reads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError, OperationalError

from bot.domain.errors import UserError
from bot.store.drivers.group_commit import (
    CommitBatch,
    Database,
    Operation,
    PendingOperation,
    unavailable,
    wrap_stop_iteration,
)

T = TypeVar("T")

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
