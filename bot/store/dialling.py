"""How PostgreSQL is reached: asyncpg under SQLAlchemy, with every wait bounded. Knows no tables.

The URL goes to asyncpg as it is, so that what libpq takes is taken here: `sslmode`, a socket as `host`, PGPASSFILE.
Nothing that is raised or logged repeats it, for it has a password in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bot.refused import Refused

NUL = "\0"
WRONG = "DATABASE_URL is not valid: write postgresql://USER:PASSWORD@HOST/DATABASE, and what is special as %40."


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds: for a connection, for other writers, for one statement, and for the server to say
    what became of a commit whose answer was lost.
    """

    connect: float = 10.0
    lock: float = 10.0
    statement: float = 20.0
    doubt: float = 20.0

    def settings(self) -> dict[str, str]:
        """What the server is told. Each statement is planned for its values: what waits is a few rows of many, and a
        partial index serves only whom the planner sees to be within it. Whoever stands still in the middle is let go.
        """
        return {
            "application_name": "darkroom",
            "idle_in_transaction_session_timeout": _milliseconds(2 * self.statement),
            "jit": "off",
            "lock_timeout": _milliseconds(self.lock),
            "plan_cache_mode": "force_custom_plan",
            "statement_timeout": _milliseconds(self.statement),
        }


LONG = Patience(lock=3600.0, statement=3600.0)  # to bring the tables up to date


def engine(url: str, patience: Patience, connections: int, options: Mapping[str, Any]) -> AsyncEngine:
    """A pool that connects when it is asked to."""
    plain = "postgresql://" + url.partition("://")[2]

    async def dial() -> asyncpg.Connection:
        try:
            return await asyncpg.connect(
                plain, command_timeout=patience.statement + 5, server_settings=patience.settings(),
                timeout=patience.connect,  # pyright: ignore[reportArgumentType] - it takes a float too
            )  # fmt: skip
        except ValueError:  # asyncpg's for what cannot be read; it may repeat the password
            raise Refused(WRONG, 400) from None

    pool = create_async_engine(
        "postgresql+asyncpg://", async_creator=dial, pool_size=connections, max_overflow=0,
        pool_timeout=patience.lock, hide_parameters=True, **options,
    )  # fmt: skip
    event.listen(pool.sync_engine, "before_cursor_execute", _without_nul, retval=True)
    return pool


def _without_nul(
    _connection: Connection, _cursor: object, statement: str, values: Any, _context: object, many: bool
) -> tuple[str, Any]:
    """PostgreSQL's texts hold every character but one, which a worker's reason for a failure may have in it."""
    if many or not any(isinstance(value, str) and NUL in value for value in values):
        return statement, values
    return statement, tuple(value.replace(NUL, "") if isinstance(value, str) else value for value in values)


def _milliseconds(seconds: float) -> str:
    return str(int(1000 * seconds))
