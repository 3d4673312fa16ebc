"""Classifies PostgreSQL errors: whether the database is unavailable, whether the connection is lost, and the reason.

Pure: only looks at exceptions. psycopg's own errors about a connection have no SQLSTATE.
"""

from __future__ import annotations

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from bot.store.drivers.group_commit import DatabaseUnavailable

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
