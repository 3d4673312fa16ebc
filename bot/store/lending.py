"""Connections of a pool, lent for one transaction: dialled, tried, put back or thrown away. Knows no queue."""

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
    """A transaction beside which no other writes; undone where its body does not commit."""
    connection, _ = await _started(pool, commits.lock)
    try:
        yield connection
    except BaseException as error:
        await _back(connection, error)
        raise
    await _back(connection)


async def asked(pool: AsyncEngine, act: Act[T]) -> T:
    """One look at the tables."""
    connection, found = await _started(pool, act)
    await _back(connection)
    return found


async def _started(pool: AsyncEngine, act: Act[T]) -> tuple[AsyncConnection, T]:
    """A connection and what `act` made of it. One that died while it lay idle is found out now, and a new one taken."""
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
    """Raises `Unreached`, whatever the server has against it: down, full, a wrong password, no such database."""
    try:
        return await pool.connect()
    except Refused:
        raise
    except Exception as error:
        raise Unreached(why(error)) from error


async def _back(connection: AsyncConnection, error: BaseException | None = None) -> None:
    """Rolled back where it was not committed. After a fault of the database nobody uses it again."""
    if error is not None and away(error):
        with suppress(Exception):
            await connection.invalidate(error)
    try:
        await connection.close()
    except Exception as worse:
        log.debug("a connection could not be put back: %s", why(worse))
        with suppress(Exception):
            await connection.invalidate()
        await connection.close()
