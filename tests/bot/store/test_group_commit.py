"""Group commit: writes that wait share a commit, and one that fails undoes no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from bot.domain.errors import UserError
from bot.store.drivers.database import select_driver
from bot.store.drivers.group_commit import Database, DatabaseUnavailable

pytestmark = [pytest.mark.asyncio, pytest.mark.may_block("acts of these tests wait, on the store's own thread")]

WriteFunction = Callable[[Connection], object]


@pytest_asyncio.fixture
async def writer(database: str) -> AsyncIterator[Database]:
    """A database with a table of numbers."""
    driver = await asyncio.to_thread(select_driver, database)
    await driver.run_write(
        lambda connection: connection.execute(text("CREATE TABLE numbers (n INTEGER UNIQUE)")) and None
    )
    yield driver
    await driver.run_write(lambda connection: connection.execute(text("DROP TABLE numbers")) and None)
    await driver.close()


def insert(number: int) -> WriteFunction:
    def insert_number(connection: Connection) -> int:
        connection.exec_driver_sql(f"INSERT INTO numbers VALUES ({number})")
        return number

    return insert_number


def insert_and_refuse(number: int) -> WriteFunction:
    def create_table(connection: Connection) -> None:
        insert(number)(connection)
        raise UserError("Not this one.", 403)

    return create_table


def _numbers(connection: Connection) -> list[int]:
    return [row[0] for row in connection.exec_driver_sql("SELECT n FROM numbers ORDER BY n")]


async def numbers(writer: Database) -> list[int]:
    return await writer.run_read(_numbers)


async def block_writer(writer: Database) -> tuple[asyncio.Task[object], threading.Event]:
    """Starts a write that blocks, so that others wait behind it."""
    release = threading.Event()
    has_started = threading.Event()

    def block_thread(_: Connection) -> None:
        has_started.set()
        release.wait(20)

    task = asyncio.create_task(writer.run_write(block_thread))
    while not has_started.is_set():
        await asyncio.sleep(0.005)
    return task, release


async def write_together(writer: Database, *actions: WriteFunction) -> list[object]:
    first, release = await block_writer(writer)
    tasks = [asyncio.create_task(writer.run_write(block_thread)) for block_thread in actions]
    await asyncio.sleep(0.05)
    release.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_waiting_writes_share_a_commit_and_each_gets_its_own_result(writer: Database) -> None:
    commits: list[str] = []
    event.listen(writer.writer, "commit", lambda _: commits.append("commit"))
    results = await write_together(writer, *(insert(number) for number in range(20)))
    assert results == list(range(20))
    assert len(commits) == 2
    assert await numbers(writer) == list(range(20))


async def test_only_the_write_that_raises_is_undone(writer: Database) -> None:
    results = await write_together(writer, insert(1), insert_and_refuse(2), insert(3), insert(1), insert(4))
    assert [results[0], results[2], results[4]] == [1, 3, 4]
    assert isinstance(results[1], UserError)
    assert isinstance(results[3], IntegrityError)
    assert await numbers(writer) == [1, 3, 4]
    with pytest.raises(UserError):
        await writer.run_write(insert_and_refuse(9))
    assert await numbers(writer) == [1, 3, 4], "a single write is undone too"


async def test_a_stop_iteration_keeps_no_one_waiting(writer: Database) -> None:
    def end_transaction(_: Connection) -> object:
        return next(iter(()))

    async with asyncio.timeout(60):
        for run in (writer.run_write, writer.run_read):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await run(end_transaction)
        results = await write_together(writer, insert(1), end_transaction)
    assert [type(each) for each in results] == [int, RuntimeError]


async def test_each_write_sees_those_before_it(writer: Database) -> None:

    def count(connection: Connection) -> object:
        return connection.exec_driver_sql("SELECT count(*) FROM numbers").scalar_one()

    results = await write_together(writer, insert(1), count, insert_and_refuse(2), count)
    assert results[1::2] == [1, 1]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_database_error_fails_every_write_of_the_commit(writer: Database) -> None:

    def fail_after_insert(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM nowhere")  # an OperationalError, as a full disk is

    results = await write_together(writer, insert(1), fail_after_insert, insert(2))
    assert [type(each) for each in results] == [DatabaseUnavailable] * 3
    assert len({id(each) for each in results}) == 3, "each has its own, since raising one adds to its traceback"
    assert all(
        isinstance(each.__cause__, OperationalError) for each in results if isinstance(each, DatabaseUnavailable)
    )
    assert await numbers(writer) == []
    assert await writer.run_write(insert(5)) == 5


async def test_a_write_cancelled_before_its_turn_is_left_out(writer: Database) -> None:
    first, release = await block_writer(writer)
    cancelled_write, other_write = (asyncio.create_task(writer.run_write(insert(number))) for number in (1, 2))
    await asyncio.sleep(0.05)
    cancelled_write.cancel()
    await asyncio.sleep(0.05)
    release.set()
    await first
    assert await other_write == 2
    assert await numbers(writer) == [2]
