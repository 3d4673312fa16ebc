"""Group commit: write transactions that wait for the database share one commit, each of them atomic.

A commit waits for the disk, and a busy evening has hundreds of transactions a second. Acts that arrive during a commit
share the next one. Each runs inside a savepoint, so an act that raises undoes only itself. A caller gets a result only
after its commit. This module knows no database: `sqlite` and `postgres` commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")
Act = Callable[[Connection], T]
Turn = tuple[Act[Any], "Future[Any]"]

TOGETHER = 32  # most acts in one commit


class Unavailable(ConnectionError):
    """The database is full, locked or away: nothing was written, and it may work later."""


def carried(error: BaseException) -> BaseException:
    """Replace StopIteration, which a future cannot raise: its awaiter would never wake."""
    return RuntimeError("an act raised StopIteration") if isinstance(error, StopIteration) else error


class Waiting:
    """Acts in order of arrival. Safe to use from any thread."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()

    def put(self, act: Act[T]) -> Future[T]:
        """Queue an act. The future has its result once it is committed."""
        future: Future[T] = Future()
        self._turns.append((act, future))
        return future

    def take(self) -> list[Turn]:
        """Return the acts that share the next commit, without those whose caller gave up."""
        taken: list[Turn] = []
        while self._turns and len(taken) < TOGETHER:
            act, future = self._turns.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((act, future))
        return taken


class Batch:
    """Acts within one transaction. `away` tells a fault of the database from one of an act."""

    def __init__(self, turns: Sequence[Turn], away: Callable[[BaseException], bool]) -> None:
        self._turns, self._away = turns, away
        self._made: dict[Future[Any], Any] = {}

    def run(self, connection: Connection) -> None:
        """Run the acts in order. Raises what ends the transaction: a fault of the database, or that of a single act."""
        for act, future in self._turns:
            try:
                self._made[future] = act(connection) if len(self._turns) == 1 else self._apart(connection, act)
            except BaseException as error:
                if len(self._turns) == 1 or self._away(error):
                    raise
                future.set_exception(carried(error))

    def _apart(self, connection: Connection, act: Act[T]) -> T:
        """Run one of several acts in a savepoint. An exception undoes only this act."""
        connection.exec_driver_sql("SAVEPOINT act")
        try:
            result = act(connection)
        except BaseException as error:
            if not self._away(error):  # else the database may have rolled everything back
                connection.exec_driver_sql("ROLLBACK TO SAVEPOINT act")
                connection.exec_driver_sql("RELEASE SAVEPOINT act")
            raise
        connection.exec_driver_sql("RELEASE SAVEPOINT act")
        return result

    def committed(self) -> None:
        """Resolve every future with the result of its act."""
        for future, result in self._made.items():
            future.set_result(result)

    def failed(self, error: BaseException, why: str) -> None:
        """Fail every future. Each gets a separate exception, since raising one adds to its traceback."""
        if len(self._turns) == 1 and not self._away(error):
            self._turns[0][1].set_exception(carried(error))
            return
        for _, future in self._turns:
            if not future.done():
                away = Unavailable(f"The database cannot be used now: {why}.")
                away.__cause__ = error
                future.set_exception(away)
