"""The store on a PostgreSQL that goes away, comes back, stands still or is somebody else's: nothing false is said."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from ulid import ULID

from bot.limits import check_places
from bot.refused import Refused
from bot.store import Draft, Store, Unavailable, Wish, reads
from bot.store.dialling import Patience
from bot.store.ledger import Ledger
from bot.store.postgres import Postgres
from bot.views import Member, Place
from engine.job import Concept, Recipe
from postgres import PASSWORD, Server

pytestmark = pytest.mark.asyncio

RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ~ '^d'"  # every session of a test
SHORT = Patience(connect=1.0, lock=0.3, statement=1.0, doubt=20.0)


def draft(user: str = "ann", **more: Any) -> Draft:
    values: dict[str, Any] = {
        "id": str(ULID()), "action": "imagine", "prompt": "a lamp", "notes": (), "task": RECIPE,
        "member": Member(user, user, "g"), "place": Place("web", {}), "pool": "default", "model": "embedded",
        "cost": 1.0, "created": 1000.0, "deadline": 2000.0,
    }  # fmt: skip
    return Draft(**(values | more))


def free(drafts: Sequence[Draft], _ledger: Ledger) -> Sequence[Draft]:
    return drafts


async def admit(store: Store, **more: Any) -> str:
    records, _ = await store.admit([draft(**more)], None, free, 1000.0)
    return records[0].id


async def kept(store: Store) -> set[str]:
    return {record.id for record in await store.ask(reads.newest, None, 10_000)}


@pytest_asyncio.fixture
async def house(postgres: Server) -> AsyncIterator[tuple[Server, Store]]:
    store = await Store.open(postgres.url(await asyncio.to_thread(postgres.database)))
    yield postgres, store
    await store.close()


async def test_connections_that_die_while_they_lie_idle_cost_nobody_anything(house: tuple[Server, Store]) -> None:
    server, store = house
    first = await admit(store)
    for _ in range(2):
        await asyncio.to_thread(
            server.sql, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ~ '^d'"
        )
        assert first in await kept(store)
        assert await admit(store) in await kept(store)


async def test_a_session_that_is_ended_in_the_middle_keeps_nothing(house: tuple[Server, Store]) -> None:
    _, store = house

    def die(connection: Connection) -> None:
        connection.execute(text("INSERT INTO terms VALUES ('x', 1)"))
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(Unavailable, match="terminating connection"):
        await store.write(die)
    with pytest.raises(Unavailable):
        await store.ask(lambda connection: connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())")))
    assert await store.ask(lambda connection: connection.execute(text("SELECT count(*) FROM terms")).scalar()) == 0
    assert await admit(store) in await kept(store)


async def test_a_server_that_is_down_is_said_at_once_and_found_again(house: tuple[Server, Store]) -> None:
    server, store = house
    first = await admit(store)
    await asyncio.to_thread(server.stop)
    try:
        for act in (admit(store), kept(store)):
            with pytest.raises(Unavailable, match="cannot be used now"):
                await act
    finally:
        await asyncio.to_thread(server.start)
    assert await kept(store) == {first}
    assert await admit(store) in await kept(store)


async def test_a_server_that_may_not_be_written_is_away_until_it_may(house: tuple[Server, Store]) -> None:
    server, store = house
    (name,) = await store.ask(lambda connection: connection.execute(text("SELECT current_database()")).scalars().all())
    alter = f"ALTER DATABASE {name} SET default_transaction_read_only ="
    await asyncio.to_thread(server.sql, f"{alter} on")
    await asyncio.to_thread(server.sql, END)
    with pytest.raises(Unavailable, match="read-only"):
        await admit(store)
    await asyncio.to_thread(server.sql, f"{alter} off")
    assert await admit(store) in await kept(store)


async def test_a_reader_does_not_write(house: tuple[Server, Store]) -> None:
    _, store = house
    with pytest.raises((Unavailable, DBAPIError), match="read-only"):
        await store.ask(lambda connection: connection.execute(text("INSERT INTO terms VALUES ('x', 1)")) and None)


async def test_limits_hold_across_processes(house: tuple[Server, Store], postgres: Server) -> None:
    _, store = house
    (name,) = await store.ask(lambda connection: connection.execute(text("SELECT current_database()")).scalars().all())
    other = await Store.open(postgres.url(name))

    def decide(drafts: Sequence[Draft], ledger: Ledger) -> Sequence[Draft]:
        check_places(3, 4, ledger.usage("member everywhere"), 1000.0)
        return drafts

    async def ask(of: Store) -> int:
        try:
            await of.admit([draft()], None, decide, 1000.0)
        except Refused:
            return 0
        return 1

    try:
        assert sum(await asyncio.gather(*(ask(of) for _ in range(12) for of in (store, other)))) == 7
    finally:
        await other.close()


async def test_another_writer_that_does_not_end_is_waited_for_and_then_given_up(postgres: Server) -> None:
    url = postgres.url(await asyncio.to_thread(postgres.database))
    slow, quick = Postgres(url), Postgres(url, SHORT)
    here = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stand(connection: Connection) -> None:
        loop.call_soon_threadsafe(here.set)
        connection.execute(text("SELECT pg_sleep(1)"))

    standing = asyncio.create_task(slow.write(stand))
    await here.wait()
    with pytest.raises(Unavailable, match="lock timeout"):
        await quick.write(lambda _: None)
    await standing
    await quick.write(lambda _: None)
    await slow.close()
    await quick.close()


async def test_a_server_that_stands_still_holds_nobody_for_ever(postgres: Server) -> None:
    there = Postgres(postgres.url(await asyncio.to_thread(postgres.database), port=True), SHORT)
    await there.write(lambda _: None)
    await there.read(lambda _: None)
    sessions = await asyncio.to_thread(postgres.sessions)
    began = time.monotonic()
    for session in sessions:
        session.send_signal(signal.SIGSTOP)
    try:
        tries = [there.write(one), there.read(one)]
        found = await asyncio.gather(*tries, return_exceptions=True)
    finally:
        for session in sessions:
            session.send_signal(signal.SIGCONT)
    assert [type(each) for each in found] == [Unavailable] * 2
    assert time.monotonic() - began < 60
    assert await there.write(one) == 1
    await there.close()


def one(connection: Connection) -> int:
    return connection.execute(text("SELECT 1")).scalar_one()


@pytest.mark.parametrize(
    "wrong",
    ["postgresql://darkroom:{p}@127.0.0.1:{port}/none", "postgresql://darkroom:{p}x@127.0.0.1:{port}/postgres",
     "postgres://darkroom:{p}@127.0.0.1:1/postgres", "postgresql+asyncpg://darkroom:{p}@nowhere.invalid/postgres",
     "postgresql://darkroom:{p}@here:{p}@127.0.0.1/x", "postgresql://darkroom:a{p}/b@127.0.0.1/x"],
)  # fmt: skip
async def test_nothing_that_is_said_has_the_password_in_it(postgres: Server, caplog: Any, wrong: str) -> None:
    caplog.set_level(0)
    with pytest.raises((Unavailable, Refused)) as caught:
        await Store.open(wrong.format(p=PASSWORD, port=postgres.port))
    said, cause = [str(caught.value)], caught.value.__cause__
    while cause is not None:
        said.append(str(cause))
        cause = cause.__cause__
    assert PASSWORD not in " ".join(said) + caplog.text
    assert "\n" not in str(caught.value)


async def test_the_right_password_lets_in(postgres: Server) -> None:
    name = await asyncio.to_thread(postgres.database)
    for url in (postgres.url(name, port=True), postgres.url(name, port=True).replace("postgresql:", "postgres:")):
        store = await Store.open(f"{url}?sslmode=prefer")
        assert await kept(store) == set()
        await store.close()


async def test_without_its_driver_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        import_module("bot.store.database"), "find_spec", lambda name: None if name == "asyncpg" else object()
    )
    with pytest.raises(Refused, match=r"pip install 'darkroom-bot\[postgres\]'"):
        await Store.open("postgresql://darkroom@/darkroom")


async def test_several_that_begin_at_once_make_the_tables_once(postgres: Server) -> None:
    url = postgres.url(await asyncio.to_thread(postgres.database, "template0"))
    stores = await asyncio.gather(*(Store.open(url) for _ in range(3)))
    jobs = {await admit(store) for store in stores}
    assert await kept(stores[0]) == jobs
    for store in stores:
        await store.close()


async def test_a_character_that_postgresql_does_not_know_spoils_nothing(house: tuple[Server, Store]) -> None:
    _, store = house
    job = await admit(store)
    await store.pick(Wish("default", ("embedded",), running=9), 64, 1.0, 1001.0)
    moved = await store.end("fail", job, 1002.0, 0.0, reason="a\0b")
    assert moved is not None
    assert moved.record.reason == "ab"


class Between:
    """Stands between a store and its server; armed, it lets the next COMMIT through or not, and its answer never."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.armed = ""

    async def meet(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, asks = await asyncio.open_connection("127.0.0.1", self._port)
        cut = asyncio.Event()

        async def there() -> None:
            while sent := await client.read(65536):
                if self.armed and b"COMMIT" in sent:
                    passes, self.armed = self.armed == "answer", ""
                    cut.set()
                    if not passes:
                        break
                asks.write(sent)
            if not cut.is_set():
                asks.close()

        async def back() -> None:
            while sent := await server.read(65536):
                if cut.is_set():
                    break
                answers.write(sent)

        going = [asyncio.create_task(there()), asyncio.create_task(back())]
        await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
        for task in going:
            task.cancel()
        answers.close()
        asks.close()


@asynccontextmanager
async def between(server: Server) -> AsyncIterator[tuple[Between, Store]]:
    name = await asyncio.to_thread(server.database)
    way = Between(server.port)
    listening = await asyncio.start_server(way.meet, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    store = await Store.open(server.url(name, port=True).replace(str(server.port), str(port)))
    try:
        yield way, store
    finally:
        await store.close()
        listening.close()


async def test_a_commit_whose_answer_is_lost_is_found_out(postgres: Server) -> None:
    async with between(postgres) as (way, store):
        first = await admit(store)
        way.armed = "answer"
        second = await admit(store)
        assert way.armed == ""
        assert await kept(store) == {first, second}
        way.armed = "everything"
        with pytest.raises(Unavailable):
            await admit(store)
        assert way.armed == ""
        assert await kept(store) == {first, second}


async def test_it_is_killed_in_the_middle_of_admissions_and_what_was_told_is_there(
    house: tuple[Server, Store], until: Callable[..., Any]
) -> None:
    server, store = house
    told: list[str] = []
    refused: list[Unavailable] = []
    going = True

    async def member(user: str) -> None:
        while going:
            try:
                told.append(await admit(store, user=user))
            except Unavailable as error:
                refused.append(error)
                await asyncio.sleep(0.02)

    async def answers_again(count: int) -> None:
        await until(lambda: len(told) > count, 60)

    members = [asyncio.create_task(member(f"u{number}")) for number in range(6)]
    try:
        for way in ("crash", "crash", "restart"):
            await answers_again(len(told) + 20)
            if way == "crash":
                await asyncio.to_thread(server.crash)
            else:
                await asyncio.to_thread(server.stop)
                await until(lambda before=len(refused): len(refused) > before, 60)
                await asyncio.to_thread(server.start)
            await answers_again(len(told) + 20)
    finally:
        going = False
        await asyncio.gather(*members)
    assert refused
    assert len(set(told)) == len(told)
    assert await kept(store) == set(told)
