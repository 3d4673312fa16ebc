"""Connects to PostgreSQL: asyncpg under SQLAlchemy, with a timeout on every wait. Knows no tables.

The URL goes to asyncpg unchanged, so libpq's forms work: `sslmode`, a socket as `host`, PGPASSFILE. It holds a
password, so no error and no log line repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bot.domain.errors import UserError

NUL = "\0"
INVALID_URL = (
    "DATABASE_URL is not valid: write postgresql://USER:PASSWORD@HOST/DATABASE, with special characters as in %40."
)


@dataclass(frozen=True)
class Timeouts:
    """Timeouts in seconds: for a connection, for other writers, for one statement, and (`commit_check`) to learn
    whether a commit with a lost reply happened.
    """

    connect: float = 10.0
    lock: float = 10.0
    statement: float = 20.0
    commit_check: float = 20.0

    def server_settings(self) -> dict[str, str]:
        """Return the server settings. The server plans each statement for its values: waiting jobs are few of many
        rows, and the planner uses a partial index only if it sees the values. The server ends idle transactions.
        """
        return {
            "application_name": "darkroom",
            "idle_in_transaction_session_timeout": _to_milliseconds(2 * self.statement),
            "jit": "off",
            "lock_timeout": _to_milliseconds(self.lock),
            "plan_cache_mode": "force_custom_plan",
            "statement_timeout": _to_milliseconds(self.statement),
        }


MIGRATION_TIMEOUTS = Timeouts(lock=3600.0, statement=3600.0)  # for migrations


def create_pool(url: str, timeouts: Timeouts, connections: int, options: Mapping[str, Any]) -> AsyncEngine:
    """Create a pool that connects on demand."""
    asyncpg_url = "postgresql://" + url.partition("://")[2]

    async def open_connection() -> asyncpg.Connection:
        try:
            return await cast(Any, asyncpg).connect(
                asyncpg_url, command_timeout=timeouts.statement + 5, server_settings=timeouts.server_settings(),
                timeout=timeouts.connect,
            )  # fmt: skip
        except ValueError:  # asyncpg cannot parse the URL; its message may repeat the password
            raise UserError(INVALID_URL, 400) from None

    pool = create_async_engine(
        "postgresql+asyncpg://", async_creator=open_connection, pool_size=connections, max_overflow=0,
        pool_timeout=timeouts.lock, hide_parameters=True, **options,
    )  # fmt: skip
    event.listen(pool.sync_engine, "before_cursor_execute", _strip_nul, retval=True)
    return pool


def _strip_nul(
    _connection: Connection, _cursor: object, statement: str, values: Any, _context: object, is_executemany: bool
) -> tuple[str, Any]:
    """Strip NUL, the one character that PostgreSQL's text cannot hold: a worker's failure reason may contain it."""
    if is_executemany or not any(isinstance(value, str) and NUL in value for value in values):
        return statement, values
    return statement, tuple(value.replace(NUL, "") if isinstance(value, str) else value for value in values)


def _to_milliseconds(seconds: float) -> str:
    return str(int(1000 * seconds))
