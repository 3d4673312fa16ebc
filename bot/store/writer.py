"""The one writer of the database: what waits together is committed together, each part of it whole or not at all.

A commit waits for the disk, and a busy evening has hundreds of transactions a second. Those that came while the last
commit was under way share the next one; each stands between savepoints, so that one which raises takes nothing with it.
Nobody hears of a result before the commit that made it last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

T = TypeVar("T")
Act = Callable[[Connection], T]

TOGETHER = 32  # acts in one commit


class Unavailable(ConnectionError):
    """The database is full, locked or away: nothing was written, and it may work later."""


class Writer:
    """Runs acts on a thread of its own, in the order in which they come."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._thread = ThreadPoolExecutor(1, "store-writer")
        self._waiting: deque[tuple[Act[Any], Future[Any]]] = deque()

    async def run(self, act: Act[T]) -> T:
        """What `act` returns, once it is committed. Raises what it raises, or `Unavailable`."""
        future: Future[T] = Future()
        self._waiting.append((act, future))
        self._thread.submit(self._together)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Finish what waits, then end the thread and its connection."""
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.dispose()

    def _together(self) -> None:
        """Everything that waits now; a later call may find nothing left."""
        batch: list[tuple[Act[Any], Future[Any]]] = []
        while self._waiting and len(batch) < TOGETHER:
            act, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((act, future))
        if batch:
            self._commit(batch)

    def _commit(self, batch: list[tuple[Act[Any], Future[Any]]]) -> None:
        made: dict[Future[Any], Any] = {}
        try:
            with self.engine.begin() as connection:
                for act, future in batch:
                    try:
                        made[future] = act(connection) if len(batch) == 1 else _apart(connection, act)
                    except OperationalError:
                        raise
                    except BaseException as error:
                        if len(batch) == 1:
                            raise
                        future.set_exception(error)
        except OperationalError as error:
            _away(batch, error)
        except BaseException as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                _away(batch, error)
        else:
            for future, result in made.items():
                future.set_result(result)


def _apart(connection: Connection, act: Act[T]) -> T:
    """One of several acts: what it raises undoes it alone."""
    connection.exec_driver_sql("SAVEPOINT act")
    try:
        result = act(connection)
    except OperationalError:  # the database may have rolled everything back
        raise
    except BaseException:
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT act")
        connection.exec_driver_sql("RELEASE SAVEPOINT act")
        raise
    connection.exec_driver_sql("RELEASE SAVEPOINT act")
    return result


def _away(batch: list[tuple[Act[Any], Future[Any]]], cause: BaseException) -> None:
    """Nothing was committed: each that waits gets an exception of its own, for raising one adds to its traceback."""
    why = cause.orig if isinstance(cause, OperationalError) else cause
    for _, future in batch:
        if not future.done():
            error = Unavailable(f"The database cannot be used now: {why}.")
            error.__cause__ = cause
            future.set_exception(error)
