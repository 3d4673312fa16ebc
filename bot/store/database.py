"""Which database there is: what the store asks of one, and the choice between them by URL."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from bot.refused import Refused
from bot.store.batch import Act
from bot.store.sqlite import Sqlite

T = TypeVar("T")

NEEDED = ("asyncpg", "greenlet")  # by PostgreSQL
MISSING = "DATABASE_URL names PostgreSQL, and its driver is not installed: pip install 'darkroom-bot[postgres]'."


class Database(Protocol):
    """Runs plain functions of a connection as transactions, on threads of its own."""

    @property
    def writer(self) -> Engine:
        """What writes."""
        ...

    @property
    def reader(self) -> Engine:
        """What reads."""
        ...

    async def write(self, act: Act[T]) -> T:
        """What `act` returns, once it is committed, in the order of the calls and beside no other writer of any
        process. Raises what it raises, or `Unavailable`.
        """
        ...

    async def upgrade(self, act: Act[None]) -> None:
        """As `write`, for what changes the tables and may take long."""
        ...

    async def read(self, act: Act[T]) -> T:
        """What `act` returns of one look at the tables. Raises what it raises, or `Unavailable`."""
        ...

    async def close(self) -> None:
        """Finish what has begun, then close every connection."""
        ...


def database_at(url: str) -> Database:
    """The database at a URL; nothing is connected yet. Raises `Refused` where its driver is missing."""
    if url.startswith("sqlite"):
        return Sqlite(make_url(url))
    if any(find_spec(name) is None for name in NEEDED):
        raise Refused(MISSING, 400)
    from bot.store.postgres import Postgres

    return Postgres(url)
