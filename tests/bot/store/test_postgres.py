"""The store on a PostgreSQL that goes away, comes back, hangs or belongs to others: it reports nothing false."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.policy.limits import check_job_count
from bot.store import DatabaseUnavailable, NewJob, PickRequest, Store
from bot.store.drivers.postgresql import READERS, PostgresDatabase, Timeouts
from bot.store.fairness.ledger import Ledger
from bot.store.jobs import queries
from shared.postgres_server import PASSWORD, Server
from shared.stored_jobs import make_new_job

pytestmark = pytest.mark.asyncio

# Ends every session of a test.
END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ~ '^d'"
SHORT = Timeouts(connect=1.0, lock=0.3, statement=1.0, commit_check=20.0)


def draft(user: str = "ann", **more: Any) -> NewJob:
    new_job = replace(make_new_job(created_at=1000.0), member=Member(user, user, "g"), cost=1.0, deadline=2000.0)
    return replace(new_job, **more)


def admit_all(drafts: Sequence[NewJob], _ledger: Ledger) -> Sequence[NewJob]:
    return drafts


async def admit_job(store: Store, **more: Any) -> str:
    records, _ = await store.admit_jobs([draft(**more)], None, admit_all, 1000.0)
    return records[0].id


async def job_ids(store: Store) -> set[str]:
    return {record.id for record in await store.query(queries.list_newest, None, 10_000)}


@pytest_asyncio.fixture
async def server_and_store(postgres: Server) -> AsyncIterator[tuple[Server, Store]]:
    store = await Store.open(postgres.url(await asyncio.to_thread(postgres.database)))
    yield postgres, store
    await store.close()


async def test_idle_connections_that_die_fail_no_request(server_and_store: tuple[Server, Store]) -> None:
    server, store = server_and_store
    first = await admit_job(store)
    for _ in range(2):
        await asyncio.to_thread(
            server.sql, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ~ '^d'"
        )
        assert first in await job_ids(store)
        assert await admit_job(store) in await job_ids(store)


async def test_a_session_that_dies_in_a_transaction_keeps_nothing(server_and_store: tuple[Server, Store]) -> None:
    _, store = server_and_store

    def die(connection: Connection) -> None:
        connection.execute(text("INSERT INTO terms VALUES ('x', 1)"))
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DatabaseUnavailable, match="terminating connection"):
        await store.write(die)
    with pytest.raises(DatabaseUnavailable):
        await store.query(lambda connection: connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())")))
    assert await store.query(lambda connection: connection.execute(text("SELECT count(*) FROM terms")).scalar()) == 0
    assert await admit_job(store) in await job_ids(store)


async def test_a_server_that_is_down_is_reported_at_once_and_found_again(
    server_and_store: tuple[Server, Store],
) -> None:
    server, store = server_and_store
    first = await admit_job(store)
    await asyncio.to_thread(server.stop)
    try:
        for act in (admit_job(store), job_ids(store)):
            with pytest.raises(DatabaseUnavailable, match="cannot be used now"):
                await act
    finally:
        await asyncio.to_thread(server.start)
    assert await job_ids(store) == {first}
    assert await admit_job(store) in await job_ids(store)


async def test_a_read_only_server_counts_as_away_until_it_is_writable(server_and_store: tuple[Server, Store]) -> None:
    server, store = server_and_store
    (name,) = await store.query(
        lambda connection: connection.execute(text("SELECT current_database()")).scalars().all()
    )
    alter = f"ALTER DATABASE {name} SET default_transaction_read_only ="
    await asyncio.to_thread(server.sql, f"{alter} on")
    await asyncio.to_thread(server.sql, END_SESSIONS)
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        await admit_job(store)
    await asyncio.to_thread(server.sql, f"{alter} off")
    assert await admit_job(store) in await job_ids(store)


async def test_a_reader_cannot_write(server_and_store: tuple[Server, Store]) -> None:
    _, store = server_and_store
    with pytest.raises((DatabaseUnavailable, DBAPIError), match="read-only"):
        await store.query(lambda connection: connection.execute(text("INSERT INTO terms VALUES ('x', 1)")) and None)


async def test_limits_hold_across_processes(server_and_store: tuple[Server, Store], postgres: Server) -> None:
    _, store = server_and_store
    (name,) = await store.query(
        lambda connection: connection.execute(text("SELECT current_database()")).scalars().all()
    )
    other = await Store.open(postgres.url(name))

    def decide(drafts: Sequence[NewJob], ledger: Ledger) -> Sequence[NewJob]:
        check_job_count(3, 4, ledger.get_usage("member everywhere"), 1000.0)
        return drafts

    async def ask(of: Store) -> int:
        try:
            await of.admit_jobs([draft()], None, decide, 1000.0)
        except UserError:
            return 0
        return 1

    try:
        assert sum(await asyncio.gather(*(ask(of) for _ in range(12) for of in (store, other)))) == 7
    finally:
        await other.close()


async def test_a_writer_that_holds_the_lock_is_waited_for_and_then_given_up(postgres: Server) -> None:
    url = postgres.url(await asyncio.to_thread(postgres.database))
    slow = PostgresDatabase(url)
    quick = PostgresDatabase(url, SHORT)
    has_started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold_lock(connection: Connection) -> None:
        loop.call_soon_threadsafe(has_started.set)
        connection.execute(text("SELECT pg_sleep(1)"))

    holding = asyncio.create_task(slow.run_write(hold_lock))
    await has_started.wait()
    with pytest.raises(DatabaseUnavailable, match="lock timeout"):
        await quick.run_write(lambda _: None)
    await holding
    await quick.run_write(lambda _: None)
    await slow.close()
    await quick.close()


async def test_a_read_that_waits_too_long_for_a_free_connection_is_given_up(postgres: Server) -> None:
    driver = PostgresDatabase(postgres.url(await asyncio.to_thread(postgres.database)), SHORT)

    def wait(connection: Connection) -> None:
        connection.execute(text("SELECT pg_sleep(0.6)"))

    outcomes = await asyncio.gather(*(driver.run_read(wait) for _ in range(2 * READERS)), return_exceptions=True)
    assert outcomes[:READERS] == [None] * READERS
    for outcome in outcomes[READERS:]:
        assert isinstance(outcome, DatabaseUnavailable)
        assert "busy for too long" in str(outcome)
    assert await driver.run_read(select_one) == 1
    await driver.close()


@pytest.mark.slow
async def test_a_server_that_hangs_blocks_no_request_for_ever(postgres: Server) -> None:
    driver = PostgresDatabase(postgres.url(await asyncio.to_thread(postgres.database), port=True), SHORT)
    await driver.run_write(lambda _: None)
    await driver.run_read(lambda _: None)
    sessions = await asyncio.to_thread(postgres.sessions)
    start = time.monotonic()
    for session in sessions:
        session.send_signal(signal.SIGSTOP)
    try:
        tries = [driver.run_write(select_one), driver.run_read(select_one)]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
    finally:
        for session in sessions:
            session.send_signal(signal.SIGCONT)
    assert [type(each) for each in outcomes] == [DatabaseUnavailable] * 2
    assert time.monotonic() - start < 60
    assert await driver.run_write(select_one) == 1
    await driver.close()


def select_one(connection: Connection) -> int:
    return connection.execute(text("SELECT 1")).scalar_one()


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://darkroom:{p}@127.0.0.1:{port}/none",
        "postgresql://darkroom:{p}x@127.0.0.1:{port}/postgres",
        "postgres://darkroom:{p}@127.0.0.1:1/postgres",
        "postgresql+asyncpg://darkroom:{p}@nowhere.invalid/postgres",
        "postgresql+psycopg://darkroom:x@{p}@127.0.0.1:{port}/postgres",
        "postgresql://darkroom:{p}@here:{p}@127.0.0.1/x",
        "postgresql://darkroom:a{p}/b@127.0.0.1/x",
    ],
)
async def test_no_message_contains_the_password(postgres: Server, caplog: Any, wrong: str) -> None:
    caplog.set_level(0)
    with pytest.raises((DatabaseUnavailable, UserError)) as caught:
        await Store.open(wrong.format(p=PASSWORD, port=postgres.port))
    messages = [str(caught.value)]
    cause = caught.value.__cause__
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    assert PASSWORD not in " ".join(messages) + caplog.text
    assert "\n" not in str(caught.value)


async def test_the_right_password_opens_the_store(postgres: Server) -> None:
    name = await asyncio.to_thread(postgres.database)
    for url in (postgres.url(name, port=True), postgres.url(name, port=True).replace("postgresql:", "postgres:")):
        store = await Store.open(f"{url}?sslmode=prefer")
        assert await job_ids(store) == set()
        await store.close()


async def test_without_its_driver_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        import_module("bot.store.drivers.database"), "find_spec", lambda name: None if name == "psycopg" else object()
    )
    with pytest.raises(UserError, match=r"pip install 'darkroom-bot\[postgres\]'"):
        await Store.open("postgresql://darkroom@/darkroom")


async def test_stores_that_open_at_once_create_the_tables_once(postgres: Server) -> None:
    url = postgres.url(await asyncio.to_thread(postgres.database, "template0"))
    stores = await asyncio.gather(*(Store.open(url) for _ in range(3)))
    jobs = {await admit_job(store) for store in stores}
    assert await job_ids(stores[0]) == jobs
    for store in stores:
        await store.close()


async def test_a_character_that_postgresql_cannot_store_is_left_out(server_and_store: tuple[Server, Store]) -> None:
    _, store = server_and_store
    job = await admit_job(store)
    await store.pick_job(PickRequest("default", ("embedded",), member_limit=9), 64, 1.0, 1001.0)
    moved = await store.end_job("fail", job, 1002.0, 0.0, reason="a\0b")
    assert moved is not None
    assert moved.record.reason == "ab"


class CommitProxy:
    """A proxy between a store and its server. Armed, it passes or drops the next COMMIT, and drops its reply."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.armed = ""
        self.meetings = set[asyncio.Task[None]]()

    async def meet(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        if (meeting := asyncio.current_task()) is not None:
            self.meetings.add(meeting)
        server, asks = await asyncio.open_connection("127.0.0.1", self._port)
        cut = asyncio.Event()

        async def forward() -> None:
            while data := await client.read(65536):
                if self.armed and b"COMMIT" in data:
                    passes = self.armed == "answer"
                    self.armed = ""
                    cut.set()
                    if not passes:
                        break
                asks.write(data)
            if not cut.is_set():
                asks.close()

        async def backward() -> None:
            while data := await server.read(65536):
                if cut.is_set():
                    break
                answers.write(data)

        directions = [asyncio.create_task(forward()), asyncio.create_task(backward())]
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for task in directions:
            task.cancel()
        for writer in (answers, asks):
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def proxied_store(server: Server) -> AsyncIterator[tuple[CommitProxy, Store]]:
    name = await asyncio.to_thread(server.database)
    proxy = CommitProxy(server.port)
    listening = await asyncio.start_server(proxy.meet, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    store = await Store.open(server.url(name, port=True).replace(str(server.port), str(port)))
    try:
        yield proxy, store
    finally:
        await store.close()
        listening.close()
        await asyncio.gather(*proxy.meetings)


async def test_the_outcome_of_a_commit_whose_reply_is_lost_is_found_out(postgres: Server) -> None:
    async with proxied_store(postgres) as (proxy, store):
        first = await admit_job(store)
        proxy.armed = "answer"
        second = await admit_job(store)
        assert proxy.armed == ""
        assert await job_ids(store) == {first, second}
        proxy.armed = "everything"
        with pytest.raises(DatabaseUnavailable):
            await admit_job(store)
        assert proxy.armed == ""
        assert await job_ids(store) == {first, second}


@pytest.mark.slow
async def test_every_acknowledged_admission_survives_crashes_of_the_server(
    server_and_store: tuple[Server, Store], wait_until: Callable[..., Any]
) -> None:
    server, store = server_and_store
    acknowledged: list[str] = []
    refusals: list[DatabaseUnavailable] = []
    is_running = True

    async def member(user: str) -> None:
        while is_running:
            try:
                acknowledged.append(await admit_job(store, user=user))
            except DatabaseUnavailable as error:
                refusals.append(error)
                await asyncio.sleep(0.02)

    async def wait_for_answers(count: int) -> None:
        await wait_until(lambda: len(acknowledged) > count, 60)

    members = [asyncio.create_task(member(f"u{number}")) for number in range(6)]
    try:
        for outage in ("crash", "crash", "restart"):
            await wait_for_answers(len(acknowledged) + 20)
            if outage == "crash":
                await asyncio.to_thread(server.crash)
            else:
                await asyncio.to_thread(server.stop)
                await wait_until(lambda before=len(refusals): len(refusals) > before, 60)
                await asyncio.to_thread(server.start)
            await wait_for_answers(len(acknowledged) + 20)
    finally:
        is_running = False
        await asyncio.gather(*members)
    assert refusals
    assert len(set(acknowledged)) == len(acknowledged)
    assert await job_ids(store) == set(acknowledged)
