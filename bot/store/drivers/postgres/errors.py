"""Classifies PostgreSQL errors: whether the database is unavailable, whether the connection is dead, and the reason.

Pure: only looks at exceptions.
"""

from __future__ import annotations

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoneFree

from bot.store.drivers.group_commit import DatabaseUnavailable

# Classes and states of https://www.postgresql.org/docs/current/errcodes-appendix.html
OUTAGE_STATES = (
    "08", "40", "53", "57", "58",  # connection, rollback, resources (a full disk), operator intervention, system
    "25006", "25P03", "25P04", "55P03", "F0", "XX",  # read-only (a standby), idle too long, locked, internal errors
    "0A000",  # a statement that was prepared before another process migrated the tables
)  # fmt: skip
CONNECTION_LOST_STATES = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04")


class ConnectFailed(DatabaseUnavailable):
    """No connection could be made."""


def is_outage(error: BaseException) -> bool:
    """Return True if the database is at fault, not the statement: a retry may succeed."""
    if isinstance(error, DBAPIError):
        return (
            error.connection_invalidated
            or _read_sqlstate(error).startswith(OUTAGE_STATES)
            or _is_connection_closed(error)
        )
    return isinstance(error, ConnectFailed | TimeoutError | NoneFree)


def is_connection_lost(error: BaseException) -> bool:
    """Return True if the connection is lost: a new one may work."""
    if isinstance(error, DBAPIError):
        return (
            error.connection_invalidated
            or _read_sqlstate(error).startswith(CONNECTION_LOST_STATES)
            or _is_connection_closed(error)
        )
    return False


def describe_error(error: BaseException) -> str:
    """Return the reason in one line for people, without statements and values."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, NoneFree):
        return "every connection was busy for too long"
    driver_error = _unwrap_error(error) if isinstance(error, DBAPIError) else error
    return (str(driver_error).strip().splitlines() or [type(driver_error).__name__])[0].rstrip(".")


def _unwrap_error(error: DBAPIError) -> BaseException:
    """Return the driver's exception that SQLAlchemy wrapped."""
    wrapped = error.orig
    if wrapped is None:
        return error
    return wrapped.__cause__ or wrapped


def _read_sqlstate(error: DBAPIError) -> str:
    return str(getattr(_unwrap_error(error), "sqlstate", "") or "")


def _is_connection_closed(error: DBAPIError) -> bool:
    """Return True if asyncpg lost the connection. Its errors about a value are ValueErrors as well."""
    cause = _unwrap_error(error)
    is_closed = isinstance(cause, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError)
    return is_closed and not isinstance(cause, ValueError)
