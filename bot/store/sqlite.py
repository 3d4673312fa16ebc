"""The SQLite driver: one thread with the only connection for writes, and a few reader threads.

WAL with `synchronous=FULL`: a commit survives a power cut. Write transactions start with BEGIN IMMEDIATE, so that two
processes take turns. By default SQLite would lock at the first write, too late to wait.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from bot.store.batch import Act, Batch, Unavailable, Waiting, carried

T = TypeVar("T")

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON")
READERS = 2


class Sqlite:
    """A `Database` in one file."""

    def __init__(self, url: URL) -> None:
        where = url.set(drivername="sqlite")
        self.writer, self.reader = _engine(where, "BEGIN IMMEDIATE", 1), _engine(where, "BEGIN", READERS)
        self._waiting = Waiting()
        self._writing = ThreadPoolExecutor(1, "store-writer")
        self._reading = ThreadPoolExecutor(READERS, "store-reader")

    async def write(self, act: Act[T]) -> T:
        """Run `act` and return its result once it is committed. Raises what `act` raises, or `Unavailable`."""
        future = self._waiting.put(act)
        self._writing.submit(self._together)
        return await asyncio.wrap_future(future)

    async def upgrade(self, act: Act[None]) -> None:
        """Run `act` like `write`: a migration is an ordinary transaction here."""
        await self.write(act)

    async def read(self, act: Act[T]) -> T:
        """Run `act` on one snapshot of the tables."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._look, act)

    async def close(self) -> None:
        """Finish pending acts, then end the threads and close their connections."""
        await asyncio.to_thread(self._writing.shutdown)
        await asyncio.to_thread(self._reading.shutdown)
        self.writer.dispose()
        self.reader.dispose()

    def _together(self) -> None:
        """Commit the next batch of waiting acts. A call may find none left."""
        turns = self._waiting.take()
        if not turns:
            return
        batch = Batch(turns, away)
        try:
            with self.writer.begin() as connection:
                batch.run(connection)
        except BaseException as error:
            batch.failed(error, _why(error))
        else:
            batch.committed()

    def _look(self, act: Act[T]) -> T:
        try:
            with self.reader.begin() as connection:
                return act(connection)
        except StopIteration as error:
            raise carried(error) from error
        except DatabaseError as error:
            if not away(error):
                raise
            raise Unavailable(f"The database cannot be used now: {_why(error)}.") from error


def away(error: BaseException) -> bool:
    """Return True if the database is at fault: locked, full, missing, or not a database."""
    return isinstance(error, OperationalError) or type(error) is DatabaseError


def _why(error: BaseException) -> str:
    return str(error.orig if isinstance(error, DatabaseError) else error)


def _engine(url: URL, begin: str, connections: int) -> Engine:
    """Create an engine whose transactions begin with the statement `begin`."""
    options = {"check_same_thread": False, "isolation_level": None}
    engine = create_engine(  # parameters are prompts and tokens: no error and no log shows them
        url, pool_size=connections, max_overflow=0, hide_parameters=True, connect_args=options
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql(begin)

    return engine
