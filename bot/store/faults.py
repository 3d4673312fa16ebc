"""What PostgreSQL's errors mean: whether it is away, whether the connection is dead, and why, in one line.

Pure: looks at exceptions alone.
"""

from __future__ import annotations

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoneFree

from bot.store.batch import Unavailable

# Classes and states of https://www.postgresql.org/docs/current/errcodes-appendix.html
AWAY = (
    "08", "40", "53", "57", "58",  # connection, rollback, resources (a full disk), an operator, the system
    "25006", "25P03", "25P04", "55P03", "F0", "XX",  # read-only (a standby), a pause too long, locked, inner faults
    "0A000",  # a statement prepared before somebody else's upgrade
)  # fmt: skip
DEAD = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04")


class Unreached(Unavailable):
    """No connection could be had."""


def away(error: BaseException) -> bool:
    """True where the database is at fault, not who asked: it may work later."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _state(error).startswith(AWAY) or _closed(error)
    return isinstance(error, Unreached | TimeoutError | NoneFree)


def dead(error: BaseException) -> bool:
    """True where the connection is over: another one may do."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _state(error).startswith(DEAD) or _closed(error)
    return False


def why(error: BaseException) -> str:
    """One line for people, without statements and values."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, NoneFree):
        return "every connection was busy for too long"
    driver = _driver(error) if isinstance(error, DBAPIError) else error
    return (str(driver).strip().splitlines() or [type(driver).__name__])[0].rstrip(".")


def _driver(error: DBAPIError) -> BaseException:
    """The driver's own exception, which SQLAlchemy has wrapped."""
    wrapped = error.orig
    if wrapped is None:
        return error
    return wrapped.__cause__ or wrapped


def _state(error: DBAPIError) -> str:
    return str(getattr(_driver(error), "sqlstate", "") or "")


def _closed(error: DBAPIError) -> bool:
    """asyncpg's for a connection that is gone; what it has against a value is a ValueError as well."""
    cause = _driver(error)
    gone = isinstance(cause, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError)
    return gone and not isinstance(cause, ValueError)
