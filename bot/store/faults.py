"""Classifies PostgreSQL errors: is the database unavailable, is the connection dead, and the reason in one line.

Pure: only looks at exceptions.
"""

from __future__ import annotations

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoneFree

from bot.store.batch import Unavailable

# Classes and states of https://www.postgresql.org/docs/current/errcodes-appendix.html
AWAY = (
    "08", "40", "53", "57", "58",  # connection, rollback, resources (a full disk), operator intervention, system
    "25006", "25P03", "25P04", "55P03", "F0", "XX",  # read-only (a standby), idle too long, locked, internal errors
    "0A000",  # a statement that was prepared before another process migrated the tables
)  # fmt: skip
DEAD = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04")


class Unreached(Unavailable):
    """No connection could be made."""


def away(error: BaseException) -> bool:
    """Return True if the database is at fault, not the statement: a retry may succeed."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _state(error).startswith(AWAY) or _closed(error)
    return isinstance(error, Unreached | TimeoutError | NoneFree)


def dead(error: BaseException) -> bool:
    """Return True if the connection is lost: a new one may work."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _state(error).startswith(DEAD) or _closed(error)
    return False


def why(error: BaseException) -> str:
    """Return the reason in one line for people, without statements and values."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, NoneFree):
        return "every connection was busy for too long"
    driver = _driver(error) if isinstance(error, DBAPIError) else error
    return (str(driver).strip().splitlines() or [type(driver).__name__])[0].rstrip(".")


def _driver(error: DBAPIError) -> BaseException:
    """Return the driver's exception that SQLAlchemy wrapped."""
    wrapped = error.orig
    if wrapped is None:
        return error
    return wrapped.__cause__ or wrapped


def _state(error: DBAPIError) -> str:
    return str(getattr(_driver(error), "sqlstate", "") or "")


def _closed(error: DBAPIError) -> bool:
    """Return True if asyncpg lost the connection. Its errors about a value are ValueErrors as well."""
    cause = _driver(error)
    gone = isinstance(cause, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError)
    return gone and not isinstance(cause, ValueError)
