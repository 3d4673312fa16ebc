"""Connects to PostgreSQL: psycopg under SQLAlchemy, with a timeout on every wait. Knows no tables.

The URL goes to libpq, so all its forms work: `sslmode`, a socket as `host`, PGPASSFILE. It holds a password, so no
error and no log line repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, create_engine, event

from bot.domain.errors import UserError
from bot.store.drivers.group_commit import Operation
from bot.store.drivers.postgres.errors import ConnectFailed, describe_error, is_connection_lost, mark_outage

T = TypeVar("T")

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
