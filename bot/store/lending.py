"""Checks out pool connections for one transaction, replaces dead ones, and returns or discards them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.refused import Refused
from bot.store import commits
from bot.store.batch import Act
from bot.store.faults import Unreached, away, dead, why

log = logging.getLogger(__name__)

T = TypeVar("T")


@asynccontextmanager
async def alone(pool: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a transaction under the writers' lock. It is rolled back unless the body commits."""
    connection, _ = await _started(pool, commits.lock)
    try:
        yield connection
    except BaseException as error:
        await _back(connection, error)
        raise
    await _back(connection)


async def asked(pool: AsyncEngine, act: Act[T]) -> T:
    """Run `act` in one read transaction."""
    connection, found = await _started(pool, act)
    await _back(connection)
    return found


async def _started(pool: AsyncEngine, act: Act[T]) -> tuple[AsyncConnection, T]:
    """Return a connection and the result of `act` on it. A connection that died while idle is replaced once."""
    connection = await _dialled(pool)
    try:
        return connection, await connection.run_sync(act)
    except BaseException as error:
        await _back(connection, error)
        if not dead(error):
            raise
    connection = await _dialled(pool)
    try:
        return connection, await connection.run_sync(act)
    except BaseException as error:
        await _back(connection, error)
        raise


async def _dialled(pool: AsyncEngine) -> AsyncConnection:
    """Connect. Raises `Unreached` for any cause: server down or full, wrong password, no such database."""
    try:
        return await pool.connect()
    except Refused:
        raise
    except Exception as error:
        raise Unreached(why(error)) from error


async def _back(connection: AsyncConnection, error: BaseException | None = None) -> None:
    """Return a connection, which rolls back what was not committed. After a database fault it is discarded."""
    if error is not None and away(error):
        with suppress(Exception):
            await connection.invalidate(error)
    try:
        await connection.close()
    except Exception as worse:
        log.debug("a connection could not be returned to the pool: %s", why(worse))
        with suppress(Exception):
            await connection.invalidate()
        await connection.close()
