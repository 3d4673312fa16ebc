"""Group commit: write transactions that wait for the database share one commit, each of them atomic.

A commit waits for the disk, and a busy evening has hundreds of transactions a second. Operations that arrive during a
commit share the next one. Each runs inside a savepoint, so an operation that raises undoes only itself. A caller gets a
result only after its commit. This module knows no database: `sqlite` and `postgres` commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")
Operation = Callable[[Connection], T]
PendingOperation = tuple[Operation[Any], "Future[Any]"]

MAX_BATCH = 32  # most operations in one commit


class DatabaseUnavailable(ConnectionError):
    """The database is full, locked or away: nothing was written, and it may work later."""


def wrap_stop_iteration(error: BaseException) -> BaseException:
    """Replace StopIteration, which a future cannot raise: its awaiter would never wake."""
    return RuntimeError("an operation raised StopIteration") if isinstance(error, StopIteration) else error


class OperationQueue:
    """Operations in order of arrival. Safe to use from any thread."""

    def __init__(self) -> None:
        self._pending: deque[PendingOperation] = deque()

    def put(self, operation: Operation[T]) -> Future[T]:
        """Queue an operation. The future has its result once it is committed."""
        future: Future[T] = Future()
        self._pending.append((operation, future))
        return future

    def take_batch(self) -> list[PendingOperation]:
        """Return the operations that share the next commit, without those whose caller gave up."""
        batch: list[PendingOperation] = []
        while self._pending and len(batch) < MAX_BATCH:
            operation, future = self._pending.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((operation, future))
        return batch


class CommitBatch:
    """Operations within one transaction. `is_outage` tells a fault of the database from one of an operation."""

    def __init__(self, pending: Sequence[PendingOperation], is_outage: Callable[[BaseException], bool]) -> None:
        self._pending = pending
        self._is_outage = is_outage
        self._results: dict[Future[Any], Any] = {}

    def run(self, connection: Connection) -> None:
        """Run the operations in order. Raises what ends the transaction: a fault of the database, or of the only
        operation.
        """
        for operation, future in self._pending:
            try:
                self._results[future] = (
                    operation(connection) if len(self._pending) == 1 else self._run_in_savepoint(connection, operation)
                )
            except BaseException as error:
                if len(self._pending) == 1 or self._is_outage(error):
                    raise
                future.set_exception(wrap_stop_iteration(error))

    def _run_in_savepoint(self, connection: Connection, operation: Operation[T]) -> T:
        """Run one of several operations in a savepoint. An exception undoes only this one."""
        connection.exec_driver_sql("SAVEPOINT act")
        try:
            result = operation(connection)
        except BaseException as error:
            if not self._is_outage(error):  # after an outage the database may have rolled everything back
                connection.exec_driver_sql("ROLLBACK TO SAVEPOINT act")
                connection.exec_driver_sql("RELEASE SAVEPOINT act")
            raise
        connection.exec_driver_sql("RELEASE SAVEPOINT act")
        return result

    def resolve_all(self) -> None:
        """Resolve every future with the result of its operation."""
        for future, result in self._results.items():
            future.set_result(result)

    def fail_all(self, error: BaseException, reason: str) -> None:
        """Fail every future. Each gets a separate exception, since raising one adds to its traceback."""
        if len(self._pending) == 1 and not self._is_outage(error):
            self._pending[0][1].set_exception(wrap_stop_iteration(error))
            return
        for _, future in self._pending:
            if not future.done():
                unavailable = DatabaseUnavailable(f"The database cannot be used now: {reason}.")
                unavailable.__cause__ = error
                future.set_exception(unavailable)
