"""The store's one writer: acts that wait share a commit, and one that fails takes nothing with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from bot.refused import Refused
from bot.store.engines import engines
from bot.store.writer import Unavailable, Writer

pytestmark = pytest.mark.asyncio

Act = Callable[[Connection], object]


def a_writer(folder: Path) -> tuple[Writer, Engine, list[str]]:
    """A writer on a table of numbers, its readers' engine, and what is committed, in order."""
    engine, reader = engines(f"sqlite:///{folder / 'numbers.sqlite'}", 1)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (n INTEGER UNIQUE)")
    commits: list[str] = []
    event.listen(engine, "commit", lambda _: commits.append("commit"))
    return Writer(engine), reader, commits


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


def numbers(reader: Engine) -> list[int]:
    with reader.begin() as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT n FROM numbers ORDER BY n")]


async def held(writer: Writer) -> tuple[asyncio.Task[object], threading.Event]:
    """An act that stands still, so that others gather behind it."""
    go, here = threading.Event(), threading.Event()

    def act(_: Connection) -> None:
        here.set()
        go.wait(20)

    task = asyncio.create_task(writer.run(act))
    while not here.is_set():
        await asyncio.sleep(0.005)
    return task, go


async def together(writer: Writer, *acts: Act) -> list[object]:
    first, go = await held(writer)
    tasks = [asyncio.create_task(writer.run(act)) for act in acts]
    await asyncio.sleep(0.05)
    go.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_waits_shares_a_commit_and_each_hears_its_own_result(tmp_path: Path) -> None:
    writer, reader, commits = await asyncio.to_thread(a_writer, tmp_path)
    found = await together(writer, *(note(number) for number in range(20)))
    assert found == list(range(20))
    assert len(commits) == 2
    assert await asyncio.to_thread(numbers, reader) == list(range(20))
    await writer.close()


async def test_one_that_raises_is_undone_alone(tmp_path: Path) -> None:
    writer, reader, _ = await asyncio.to_thread(a_writer, tmp_path)
    found = await together(writer, note(1), refuse(2), note(3), note(1), note(4))
    assert [found[0], found[2], found[4]] == [1, 3, 4]
    assert isinstance(found[1], Refused)
    assert "UNIQUE" in str(found[3])
    assert await asyncio.to_thread(numbers, reader) == [1, 3, 4]
    with pytest.raises(Refused):
        await writer.run(refuse(9))
    assert await asyncio.to_thread(numbers, reader) == [1, 3, 4], "alone as well"
    await writer.close()


async def test_each_sees_what_those_before_it_wrote(tmp_path: Path) -> None:
    writer, _, _ = await asyncio.to_thread(a_writer, tmp_path)

    def count(connection: Connection) -> object:
        return connection.exec_driver_sql("SELECT count(*) FROM numbers").scalar_one()

    found = await together(writer, note(1), count, refuse(2), count)
    assert found[1::2] == [1, 1]
    await writer.close()


async def test_a_database_that_fails_fails_all_who_shared_the_commit(tmp_path: Path) -> None:
    writer, reader, _ = await asyncio.to_thread(a_writer, tmp_path)

    def broken(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM nowhere")  # an OperationalError, as a full disk is

    found = await together(writer, note(1), broken, note(2))
    assert [type(each) for each in found] == [Unavailable] * 3
    assert len({id(each) for each in found}) == 3, "each has its own: whoever raises one adds to its traceback"
    assert all(isinstance(each.__cause__, OperationalError) for each in found if isinstance(each, Unavailable))
    assert await asyncio.to_thread(numbers, reader) == []
    assert await writer.run(note(5)) == 5
    await writer.close()


async def test_whoever_gave_up_before_its_turn_is_left_out(tmp_path: Path) -> None:
    writer, reader, _ = await asyncio.to_thread(a_writer, tmp_path)
    first, go = await held(writer)
    given_up, stays = (asyncio.create_task(writer.run(note(number))) for number in (1, 2))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await asyncio.sleep(0.05)
    go.set()
    await first
    assert await stays == 2
    assert await asyncio.to_thread(numbers, reader) == [2]
    await writer.close()
