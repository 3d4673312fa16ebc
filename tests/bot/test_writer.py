"""What the store asks of a database: acts that wait share a commit, and one that fails takes nothing with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from bot.refused import Refused
from bot.store.batch import Unavailable
from bot.store.database import Database, database_at

pytestmark = [pytest.mark.asyncio, pytest.mark.may_block("acts of these tests wait, on the store's own thread")]

Act = Callable[[Connection], object]


@pytest_asyncio.fixture
async def writer(database: str) -> AsyncIterator[Database]:
    """A database with a table of numbers."""
    opened = await asyncio.to_thread(database_at, database)
    await opened.write(lambda connection: connection.execute(text("CREATE TABLE numbers (n INTEGER UNIQUE)")) and None)
    yield opened
    await opened.write(lambda connection: connection.execute(text("DROP TABLE numbers")) and None)
    await opened.close()


def note(number: int) -> Act:
    def act(connection: Connection) -> int:
        connection.exec_driver_sql(f"INSERT INTO numbers VALUES ({number})")
        return number

    return act


def refuse(number: int) -> Act:
    def act(connection: Connection) -> None:
        note(number)(connection)
        raise Refused("Not this one.", 403)

    return act


def _numbers(connection: Connection) -> list[int]:
    return [row[0] for row in connection.exec_driver_sql("SELECT n FROM numbers ORDER BY n")]


async def numbers(writer: Database) -> list[int]:
    return await writer.read(_numbers)


async def held(writer: Database) -> tuple[asyncio.Task[object], threading.Event]:
    """An act that stands still, so that others gather behind it."""
    go, here = threading.Event(), threading.Event()

    def act(_: Connection) -> None:
        here.set()
        go.wait(20)

    task = asyncio.create_task(writer.write(act))
    while not here.is_set():
        await asyncio.sleep(0.005)
    return task, go


async def together(writer: Database, *acts: Act) -> list[object]:
    first, go = await held(writer)
    tasks = [asyncio.create_task(writer.write(act)) for act in acts]
    await asyncio.sleep(0.05)
    go.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_waits_shares_a_commit_and_each_hears_its_own_result(writer: Database) -> None:
    commits: list[str] = []
    event.listen(writer.writer, "commit", lambda _: commits.append("commit"))
    found = await together(writer, *(note(number) for number in range(20)))
    assert found == list(range(20))
    assert len(commits) == 2
    assert await numbers(writer) == list(range(20))


async def test_one_that_raises_is_undone_alone(writer: Database) -> None:
    found = await together(writer, note(1), refuse(2), note(3), note(1), note(4))
    assert [found[0], found[2], found[4]] == [1, 3, 4]
    assert isinstance(found[1], Refused)
    assert isinstance(found[3], IntegrityError)
    assert await numbers(writer) == [1, 3, 4]
    with pytest.raises(Refused):
        await writer.write(refuse(9))
    assert await numbers(writer) == [1, 3, 4], "alone as well"


async def test_what_no_future_takes_keeps_nobody_waiting(writer: Database) -> None:
    def ends(_: Connection) -> object:
        return next(iter(()))

    async with asyncio.timeout(60):
        for way in (writer.write, writer.read):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await way(ends)
        found = await together(writer, note(1), ends)
    assert [type(each) for each in found] == [int, RuntimeError]


async def test_each_sees_what_those_before_it_wrote(writer: Database) -> None:

    def count(connection: Connection) -> object:
        return connection.exec_driver_sql("SELECT count(*) FROM numbers").scalar_one()

    found = await together(writer, note(1), count, refuse(2), count)
    assert found[1::2] == [1, 1]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_database_that_fails_fails_all_who_shared_the_commit(writer: Database) -> None:

    def broken(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM nowhere")  # an OperationalError, as a full disk is

    found = await together(writer, note(1), broken, note(2))
    assert [type(each) for each in found] == [Unavailable] * 3
    assert len({id(each) for each in found}) == 3, "each has its own: whoever raises one adds to its traceback"
    assert all(isinstance(each.__cause__, OperationalError) for each in found if isinstance(each, Unavailable))
    assert await numbers(writer) == []
    assert await writer.write(note(5)) == 5


async def test_whoever_gave_up_before_its_turn_is_left_out(writer: Database) -> None:
    first, go = await held(writer)
    given_up, stays = (asyncio.create_task(writer.write(note(number))) for number in (1, 2))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await asyncio.sleep(0.05)
    go.set()
    await first
    assert await stays == 2
    assert await numbers(writer) == [2]
