"""The PostgreSQL driver: one thread with its own event loop, one connection for writes and a few for reads.

It runs the same plain functions of a connection as SQLite: SQLAlchemy gives them a connection that looks synchronous
(greenlet) and waits on asyncpg underneath. A caller on any event loop makes one hop per transaction.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from ulid import ULID

from bot.store import commits
from bot.store.batch import Act, Batch, Unavailable, Waiting, carried
from bot.store.commits import Commit
from bot.store.dialling import LONG, Patience, engine
from bot.store.faults import away, why
from bot.store.lending import alone, asked

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 4
READING = {"isolation_level": "REPEATABLE READ", "execution_options": {"postgresql_readonly": True}}
CLOSE_SECONDS = 5.0
GLANCE_SECONDS = 0.1  # between two tries to learn the outcome of a commit


class Postgres:
    """A `Database` on a server."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self._url, self._patience = url, patience or Patience()
        self._writing = engine(url, self._patience, 1, {})
        self._reading = engine(url, self._patience, READERS, READING)
        self.writer, self.reader = self._writing.sync_engine, self._reading.sync_engine
        self._waiting, self._name, self._number = Waiting(), str(ULID()), 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._committing = False
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="store", daemon=True)
        self._thread.start()

    async def write(self, act: Act[T]) -> T:
        """Run `act` and return its result once it is committed. Raises what `act` raises, or `Unavailable`."""
        future = self._waiting.put(act)
        self._loop.call_soon_threadsafe(self._wake)
        return await asyncio.wrap_future(future)

    async def read(self, act: Act[T]) -> T:
        """Run `act` on one snapshot of the tables; it may run twice. Raises what `act` raises, or `Unavailable`."""
        return await self._hop(lambda: self._look(act))

    async def upgrade(self, act: Act[None]) -> None:
        """Run `act` like `write`, and wait long for it and for other processes. Raises `Refused` for a wrong URL."""
        await self._hop(lambda: self._alter(act))

    async def close(self) -> None:
        """Finish pending transactions, close every connection and end the thread."""
        await self._hop(self._finish)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _hop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run on the store's loop. Cancelling the caller does not stop running work: it would cost a connection."""
        future: Future[T] = Future()

        async def answering() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(await work())
                except BaseException as error:
                    future.set_exception(carried(error))

        self._loop.call_soon_threadsafe(self._start, answering)
        return await asyncio.wrap_future(future)

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self) -> None:
        if not self._committing:
            self._committing = True
            self._start(self._write)

    async def _write(self) -> None:
        """Commit waiting acts, batch after batch, until none is left."""
        try:
            while turns := self._waiting.take():
                await self._commit(Batch(turns, away))
        finally:
            self._committing = False

    async def _commit(self, batch: Batch) -> None:
        self._number += 1
        commit, ending = Commit(self._name, self._number), False
        try:
            async with alone(self._writing) as connection:
                if commit.number == 1:
                    await connection.run_sync(commits.forget, time.time())
                await connection.run_sync(batch.run)
                await connection.run_sync(commits.note, commit, time.time())
                ending = True
                await connection.commit()
        except BaseException as error:
            if ending and await self._happened(commit):
                batch.committed()
            else:
                batch.failed(error, why(error))
        else:
            batch.committed()

    async def _happened(self, commit: Commit) -> bool:
        """Return whether a commit with a lost reply happened; False too if the server does not return in time."""
        until = self._loop.time() + self._patience.doubt
        while True:
            try:
                async with alone(self._writing) as connection:
                    return await connection.run_sync(commits.happened, commit)
            except Exception as error:
                if self._loop.time() > until or not away(error):
                    log.error("cannot tell whether the last commit happened: %s", why(error))
                    return False
            await asyncio.sleep(GLANCE_SECONDS)

    async def _look(self, act: Act[T]) -> T:
        try:
            return await asked(self._reading, act)
        except Exception as error:
            if not away(error):
                raise
            raise Unavailable(f"The database cannot be used now: {why(error)}.") from error

    async def _alter(self, act: Act[None]) -> None:
        altering = engine(self._url, LONG, 1, {})
        try:
            async with alone(altering) as connection:
                await connection.run_sync(act)
                await connection.commit()
        except (DBAPIError, Unavailable) as error:  # such as a role without the right to create tables
            raise Unavailable(f"The database cannot be used now: {why(error)}.") from error
        finally:
            await _left(altering)

    async def _finish(self) -> None:
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)
        await _left(self._writing)
        await _left(self._reading)


async def _left(pool: AsyncEngine) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await pool.dispose()
