"""Checks out pool connections for one transaction, replaces dead ones, and returns or discards them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.domain.errors import UserError
from bot.store.drivers.group_commit import Operation
from bot.store.drivers.postgres import commit_log
from bot.store.drivers.postgres.errors import ConnectFailed, describe_error, is_connection_lost, is_outage

log = logging.getLogger(__name__)

T = TypeVar("T")


@asynccontextmanager
async def write_transaction(pool: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """Open a transaction under the writers' lock. It is rolled back unless the body commits."""
    connection, _ = await _begin(pool, commit_log.lock_writers)
    try:
        yield connection
    except BaseException as error:
        await _release(connection, error)
        raise
    await _release(connection)


async def run_read(pool: AsyncEngine, operation: Operation[T]) -> T:
    """Run `operation` in one read transaction."""
    connection, result = await _begin(pool, operation)
    await _release(connection)
    return result


async def _begin(pool: AsyncEngine, operation: Operation[T]) -> tuple[AsyncConnection, T]:
    """Return a connection and the result of `operation` on it. A connection that died while idle is replaced once."""
    connection = await _connect(pool)
    try:
        return connection, await connection.run_sync(operation)
    except BaseException as error:
        await _release(connection, error)
        if not is_connection_lost(error):
            raise
    connection = await _connect(pool)
    try:
        return connection, await connection.run_sync(operation)
    except BaseException as error:
        await _release(connection, error)
        raise


async def _connect(pool: AsyncEngine) -> AsyncConnection:
    """Connect. Raises `ConnectFailed` for any cause: server down or full, wrong password, no such database."""
    try:
        return await pool.connect()
    except UserError:
        raise
    except Exception as error:
        raise ConnectFailed(describe_error(error)) from error


async def _release(connection: AsyncConnection, error: BaseException | None = None) -> None:
    """Return a connection, which rolls back what was not committed. After a database fault it is discarded."""
    if error is not None and is_outage(error):
        with suppress(Exception):
            await connection.invalidate(error)
    try:
        await connection.close()
    except Exception as close_error:
        log.debug("a connection could not be returned to the pool: %s", describe_error(close_error))
        with suppress(Exception):
            await connection.invalidate()
        await connection.close()
