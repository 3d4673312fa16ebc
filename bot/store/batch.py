"""Acts that wait for the database share one commit, each of them whole or not at all.

A commit waits for the disk, and a busy evening has hundreds of transactions a second. Those that came while the last
commit was under way share the next one; each stands between savepoints, so that one which raises takes nothing with it.
Nobody hears of a result before the commit that made it last. Knows no database: `sqlite` and `postgres` commit.
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

TOGETHER = 32  # acts in one commit


class Unavailable(ConnectionError):
    """The database is full, locked or away: nothing was written, and it may work later."""


def carried(error: BaseException) -> BaseException:
    """What a future takes: a StopIteration is not raised by any, and whoever awaits it would wait for ever."""
    return RuntimeError("an act raised StopIteration") if isinstance(error, StopIteration) else error


class Waiting:
    """Acts in the order in which they came, from any thread."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()

    def put(self, act: Act[T]) -> Future[T]:
        """The act's result, once it is committed."""
        future: Future[T] = Future()
        self._turns.append((act, future))
        return future

    def take(self) -> list[Turn]:
        """Those that share the next commit; whoever gave up meanwhile is left out."""
        taken: list[Turn] = []
        while self._turns and len(taken) < TOGETHER:
            act, future = self._turns.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((act, future))
        return taken


class Batch:
    """Acts within one transaction. `away` tells the database's fault from an act's own."""

    def __init__(self, turns: Sequence[Turn], away: Callable[[BaseException], bool]) -> None:
        self._turns, self._away = turns, away
        self._made: dict[Future[Any], Any] = {}

    def run(self, connection: Connection) -> None:
        """One act after the other. Raises what ends the transaction: the database's fault, or that of the only act."""
        for act, future in self._turns:
            try:
                self._made[future] = act(connection) if len(self._turns) == 1 else self._apart(connection, act)
            except BaseException as error:
                if len(self._turns) == 1 or self._away(error):
                    raise
                future.set_exception(carried(error))

    def _apart(self, connection: Connection, act: Act[T]) -> T:
        """One of several acts: what it raises undoes it alone."""
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
        """Everybody hears what their act made."""
        for future, result in self._made.items():
            future.set_result(result)

    def failed(self, error: BaseException, why: str) -> None:
        """Nothing was committed. Each gets an exception of its own, for raising one adds to its traceback."""
        if len(self._turns) == 1 and not self._away(error):
            self._turns[0][1].set_exception(carried(error))
            return
        for _, future in self._turns:
            if not future.done():
                away = Unavailable(f"The database cannot be used now: {why}.")
                away.__cause__ = error
                future.set_exception(away)
