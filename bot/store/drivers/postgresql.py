"""The PostgreSQL driver: psycopg under SQLAlchemy, with a timeout on every wait, and one writer at a time.

A lock serialises the writers of all processes. A log of commits tells whether a commit whose reply was lost happened.
Errors are classified: whether the database is unavailable, whether the connection is lost, and why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, create_engine, delete, event, literal, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from ulid import ULID

from bot.domain.errors import UserError
from bot.store.drivers.group_commit import (
    CommitBatch,
    Database,
    DatabaseUnavailable,
    Operation,
    PendingOperation,
    unavailable,
    wrap_stop_iteration,
)
from bot.store.schema.tables import commit_log

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 4
POLL_SECONDS = 0.1  # between two tries to learn the outcome of a commit


class PostgresDatabase(Database):
    """A `Database` on a server."""

    def __init__(self, url: str, timeouts: Timeouts | None = None) -> None:
        self._url = url
        self._timeouts = timeouts or Timeouts()
        writer = create_postgres_engine(url, self._timeouts, 1)
        super().__init__(writer, create_postgres_engine(url, self._timeouts, READERS, is_reader=True), READERS)
        self._writer_name = str(ULID())
        self._commit_number = 0

    async def run_read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot of the tables; it may run twice. Raises what `operation` raises, or
        `DatabaseUnavailable`.
        """
        deadline = time.monotonic() + self._timeouts.lock
        return await asyncio.wrap_future(self._read_threads.submit(self._run_read, operation, deadline))

    async def upgrade(self, operation: Operation[None]) -> None:
        """Run `operation` like `run_write`, and wait long for it and for other processes."""
        await asyncio.wrap_future(self._write_thread.submit(self._run_migration, operation))

    def _commit(self, pending: Sequence[PendingOperation]) -> None:
        batch = CommitBatch(pending, is_outage)
        self._commit_number += 1
        commit_id = CommitId(self._writer_name, self._commit_number)
        is_commit_sent = False
        try:
            with begin(self.writer, lock_writers)[0] as connection:
                if commit_id.number == 1:
                    delete_old_commits(connection, time.time())
                batch.run(connection)
                record_commit(connection, commit_id, time.time())
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
                with begin(self.writer, lock_writers)[0] as connection:
                    return is_committed(connection, commit_id)
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
            raise unavailable("every connection was busy for too long")
        try:
            connection, result = begin(self.reader, run_and_commit)
        except StopIteration as error:
            raise wrap_stop_iteration(error) from error
        except Exception as error:
            if not is_outage(error):
                raise
            raise unavailable(describe_error(error)) from error
        connection.close()
        return result

    def _run_migration(self, operation: Operation[None]) -> None:
        engine = create_postgres_engine(self._url, MIGRATION_TIMEOUTS, 1)
        try:
            with begin(engine, lock_writers)[0] as connection:
                operation(connection)
                connection.commit()
        except (DBAPIError, DatabaseUnavailable) as error:  # such as a role without the right to create tables
            raise unavailable(describe_error(error)) from error
        finally:
            engine.dispose()


NUL = "\0"
INVALID_URL = (
    "DATABASE_URL is not valid: write postgresql://USER:PASSWORD@HOST/DATABASE, with special characters as in %40."
)
GRACE_SECONDS = 5.0  # how much longer we wait for a statement than the server does


@dataclass(frozen=True)
class Timeouts:
    """Timeouts in seconds: for a connection (at least two), for other writers, for one statement, and (`commit_check`)
    to learn whether a commit with a lost reply happened.
    """

    connect: float = 10.0
    lock: float = 10.0
    statement: float = 20.0
    commit_check: float = 20.0

    def server_options(self) -> str:
        """Return the server settings. The server plans each statement for its values: waiting jobs are few of many
        rows, and the planner uses a partial index only if it sees the values. The server ends idle transactions.
        """
        settings = {
            "idle_in_transaction_session_timeout": _to_milliseconds(2 * self.statement),
            "jit": "off",
            "lock_timeout": _to_milliseconds(self.lock),
            "plan_cache_mode": "force_custom_plan",
            "statement_timeout": _to_milliseconds(self.statement),
        }
        return " ".join(f"-c {name}={value}" for name, value in settings.items())


MIGRATION_TIMEOUTS = Timeouts(lock=3600.0, statement=3600.0)  # for migrations


class TimedConnection(psycopg.Connection[Any]):
    """A connection that gives up on a server that does not answer. The server's own timeouts need a server that runs,
    and those of TCP one whose system is down.
    """

    answer_timeout: float | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Run a step of psycopg. Raises `QueryCanceled`, and closes the connection, if no answer comes in time."""
        try:
            return super().wait(gen, interval, timeout or self.answer_timeout)
        except psycopg.errors._WaitTimeout as error:  # pyright: ignore[reportPrivateUsage] - its callers convert it
            self.close()
            raise psycopg.errors.QueryCanceled("it did not answer in time") from error


def create_postgres_engine(url: str, timeouts: Timeouts, connections: int, *, is_reader: bool = False) -> Engine:
    """Create an engine that connects on demand. A reader's transactions each see one snapshot and cannot write.

    Raises `UserError` for a wrong URL.
    """
    parameters = _parse_url(url)
    parameters["options"] = f"{parameters.get('options', '')} {timeouts.server_options()}"
    parameters |= {"application_name": "darkroom", "connect_timeout": str(timeouts.connect)}

    def open_connection() -> TimedConnection:
        connection = TimedConnection.connect(**parameters)
        connection.answer_timeout = timeouts.statement + GRACE_SECONDS
        if is_reader:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
        return connection

    engine = create_engine(
        "postgresql+psycopg://", creator=open_connection, pool_size=connections, max_overflow=0, hide_parameters=True
    )
    event.listen(engine, "before_cursor_execute", _strip_nul, retval=True)
    event.listen(engine, "handle_error", mark_outage)
    return engine


def begin(engine: Engine, operation: Operation[T], tries: int = 2) -> tuple[Connection, T]:
    """Return a connection and the result of `operation` on it. A connection that died while idle is replaced once.

    Raises `ConnectFailed` for any cause: server down or full, wrong password, no such database.
    """
    try:
        connection = engine.connect()
    except Exception as error:
        raise ConnectFailed(describe_error(error)) from error
    try:
        return connection, operation(connection)
    except BaseException as error:
        connection.close()
        if tries == 1 or not is_connection_lost(error):
            raise
    return begin(engine, operation, tries - 1)


def _parse_url(url: str) -> dict[str, Any]:
    """Return the parameters of a URL for libpq, whose errors would repeat a password that it takes for a port. A
    password may contain `@`.
    """
    authority, slash, rest = url.partition("://")[2].partition("/")
    account, at, hosts = authority.rpartition("@")
    try:
        parameters = conninfo_to_dict(f"postgresql://{account.replace('@', '%40')}{at}{hosts}{slash}{rest}")
    except psycopg.Error:
        raise UserError(INVALID_URL, 400) from None
    if not all(port.isdigit() for port in str(parameters.get("port") or "0").split(",")):
        raise UserError(INVALID_URL, 400)
    return parameters


def _strip_nul(
    _connection: Connection, _cursor: object, statement: str, values: Any, _context: object, is_executemany: bool
) -> tuple[str, Any]:
    """Strip NUL, the one character that PostgreSQL's text cannot hold: a worker's failure reason may contain it."""
    if is_executemany or not any(isinstance(value, str) and NUL in value for value in values.values()):
        return statement, values
    return statement, {
        name: value.replace(NUL, "") if isinstance(value, str) else value for name, value in values.items()
    }


def _to_milliseconds(seconds: float) -> str:
    return str(int(1000 * seconds))


# Classes and states of https://www.postgresql.org/docs/current/errcodes-appendix.html
OUTAGE_STATES = (
    "08",
    "40",
    "53",
    "57",
    "58",  # connection, rollback, resources (a full disk), operator intervention, system
    "25006",
    "25P03",
    "25P04",
    "55P03",
    "F0",
    "XX",  # read-only (a standby), idle too long, locked, internal errors
    "0A000",  # a statement that was prepared before another process migrated the tables
)
CONNECTION_LOST_STATES = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04")


class ConnectFailed(DatabaseUnavailable):
    """No connection could be made."""


def mark_outage(context: ExceptionContext) -> None:
    """Have SQLAlchemy discard the connections after a fault of the database, also where this one is still open: it may
    be one to a standby.
    """
    if _read_sqlstate(context.original_exception).startswith(OUTAGE_STATES):
        context.is_disconnect = True


def is_outage(error: BaseException) -> bool:
    """Return True if the database is at fault, not the statement: a retry may succeed."""
    return isinstance(error, ConnectFailed) or (isinstance(error, DBAPIError) and error.connection_invalidated)


def is_connection_lost(error: BaseException) -> bool:
    """Return True if the connection is lost: a new one may work."""
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = _read_sqlstate(error.orig)
    return sqlstate.startswith(CONNECTION_LOST_STATES) or (error.connection_invalidated and not sqlstate)


def describe_error(error: BaseException) -> str:
    """Return the reason in one line for people, without statements and values."""
    cause = error.orig or error if isinstance(error, DBAPIError) else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")


def _read_sqlstate(error: BaseException | None) -> str:
    return str(getattr(error, "sqlstate", "") or "")


LOCK_ID = int.from_bytes(b"darkroom", "big")
RETENTION_SECONDS = 86_400.0  # seconds until rows of ended writers are deleted, long after every outcome is resolved

_TAKE_LOCK = text(f"SELECT pg_advisory_xact_lock({LOCK_ID})")
_HAS_WRITTEN = text("pg_current_xact_id_if_assigned() IS NOT NULL")  # a transaction without writes needs no row


@dataclass(frozen=True)
class CommitId:
    """One transaction of one writer, by number."""

    writer: str
    number: int


def lock_writers(connection: Connection) -> None:
    """Wait for other writers to end, and block them until this transaction ends."""
    connection.execute(_TAKE_LOCK)


def record_commit(connection: Connection, commit: CommitId, now: float) -> None:
    """Write the commit's number; the last statement of a transaction. Raises if an earlier statement failed unseen."""
    row = select(literal(commit.writer), literal(commit.number), literal(now)).where(_HAS_WRITTEN)
    statement = insert(commit_log).from_select(["writer", "number", "at"], row)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["writer"], set_={"number": commit.number, "at": now})
    )


def is_committed(connection: Connection, commit: CommitId) -> bool:
    """Return whether the commit happened. Call it under the lock: else the commit may still be in progress."""
    newest_number = connection.execute(select(commit_log.c.number).where(commit_log.c.writer == commit.writer)).scalar()
    return newest_number == commit.number


def delete_old_commits(connection: Connection, now: float) -> None:
    """Delete rows of writers that ended long ago."""
    connection.execute(delete(commit_log).where(commit_log.c.at < now - RETENTION_SECONDS))
