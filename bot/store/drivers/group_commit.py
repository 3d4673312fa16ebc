"""Drivers' base: write transactions that wait for the database share one commit, each of them atomic.

A commit waits for the disk, and a busy evening has hundreds of transactions a second. Operations that arrive during a
commit share the next one. Each runs inside a savepoint, so an operation that raises undoes only itself. A caller gets a
result only after its commit.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

T = TypeVar("T")

Operation = Callable[[Connection], T]
PendingOperation = tuple[Operation[Any], "Future[Any]"]

MAX_BATCH = 32  # most operations in one commit


class DatabaseUnavailable(ConnectionError):
    """The database is full, locked or away: nothing was written, and it may work later."""


def unavailable(reason: str) -> DatabaseUnavailable:
    """Return the error with its sentence."""
    return DatabaseUnavailable(f"The database cannot be used now: {reason}.")


def wrap_stop_iteration(error: BaseException) -> BaseException:
    """Replace StopIteration, which a future cannot raise: its awaiter would never wake."""
    return RuntimeError("an operation raised StopIteration") if isinstance(error, StopIteration) else error


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
                copy = unavailable(reason)
                copy.__cause__ = error
                future.set_exception(copy)


class Database(ABC):
    """Runs plain functions of a connection as transactions, on its own threads. `writer`, `reader`: the engines."""

    def __init__(self, writer: Engine, reader: Engine, reader_count: int) -> None:
        self.writer = writer
        self.reader = reader
        self._pending: deque[PendingOperation] = deque()
        self._write_thread = ThreadPoolExecutor(1, "store-writer")
        self._read_threads = ThreadPoolExecutor(reader_count, "store-reader")

    async def run_write(self, operation: Operation[T]) -> T:
        """Run `operation` and return its result once it is committed. Writers of all processes run one at a time, in
        the order of the calls. Raises what `operation` raises, or `DatabaseUnavailable`.
        """
        future: Future[T] = Future()
        self._pending.append((operation, future))
        self._write_thread.submit(self._commit_next_batch)
        return await asyncio.wrap_future(future)

    async def upgrade(self, operation: Operation[None]) -> None:
        """Run `operation` like `run_write`, for a migration that may take long."""
        await self.run_write(operation)

    @abstractmethod
    async def run_read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot of the tables; it may run twice. Raises what `operation` raises, or
        `DatabaseUnavailable`.
        """

    async def truncate_log(self) -> bool:
        """Empty the write-ahead log, where it is ours: the bytes of deleted rows are in it. False: not possible now."""
        return True

    async def close(self) -> None:
        """Finish pending transactions, then end the threads and close their connections."""
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        self.writer.dispose()
        self.reader.dispose()

    def _commit_next_batch(self) -> None:
        """Commit the operations that share the next commit, without those whose caller gave up. There may be none."""
        batch: list[PendingOperation] = []
        while self._pending and len(batch) < MAX_BATCH:
            operation, future = self._pending.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((operation, future))
        if batch:
            self._commit(batch)

    @abstractmethod
    def _commit(self, pending: Sequence[PendingOperation]) -> None:
        """Commit these operations together, and give each its result or its error."""
