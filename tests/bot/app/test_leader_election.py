"""One bot leads. Another takes over when it is killed or stopped, and a returning bot changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bot.app import leader_election
from bot.app import leader_election as leading_module
from bot.app.leader_election import EXIT_CODE, Leader, WatchdogLoop, boot_seconds, keep_lead
from bot.domain.errors import UserError
from bot.store import DatabaseUnavailable, NotLeader, Store, leader_terms, read_store_id
from bot.store.jobs import queries
from engine.bus import Bus, BusLimits, ClaimHolder
from engine.contract import decode, encode

ENV = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "DISCORD_"))}


def test_the_check_of_leadership_runs_before_other_callbacks():
    calls: list[str] = []
    with asyncio.Runner(loop_factory=WatchdogLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, WatchdogLoop)
        loop.selector.before_iteration = lambda: calls.append("look")
        runner.run(asyncio.sleep(0))
        loop.call_soon(calls.append, "work")
        calls.clear()
        runner.run(asyncio.sleep(0))
        loop.selector.before_iteration = None
    assert calls.index("look") < calls.index("work")


@pytest.mark.asyncio
async def test_an_older_leader_term_writes_nothing_any_more(tmp_path):
    url = f"sqlite:///{tmp_path / 'one.sqlite'}"
    first = await Store.open(url)
    second = await Store.open(url)
    await first.write(lambda _: None)  # nobody leads, so no term is needed
    await first.begin_term()
    await second.begin_term()
    assert (await first.is_leader(), await second.is_leader()) == (False, True)
    with pytest.raises(NotLeader):
        await first.write(lambda _: None)
    await second.write(lambda _: None)
    await first.begin_term()
    assert not await second.is_leader()
    for store in (first, second):
        await store.close()


async def _bus(harness: Any) -> Bus:
    bus = await Bus.connect(harness.broker.url, harness.broker.token, limits=BusLimits(leader_lease=1.0))
    harness.stack.push_async_callback(bus.close)
    await bus.declare()
    return bus


@pytest.mark.asyncio
async def test_a_standby_says_so_and_takes_over_when_the_leader_resigns(harness, wait_until, monkeypatch):
    monkeypatch.setattr(leading_module, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(leading_module, "RENEW_SECONDS", 0.2)
    notices: list[str] = []
    loss_reasons: list[str] = []
    first = await _bus(harness)
    second = await _bus(harness)

    async def follow() -> Store:
        async with keep_lead(second, notices.append, on_lost=loss_reasons.append) as leader:
            store = await Store.open(harness.settings.database)
            await leader.begin_term(store)
            leader.note_close()
            return store

    async with keep_lead(first, notices.append, on_lost=loss_reasons.append) as leader:
        follow_task = asyncio.create_task(follow())
        await wait_until(lambda: notices)
        assert re.fullmatch(r"Another bot leads on this broker \(bot-.+\): this one stands by\.", notices[0])
        await asyncio.sleep(1.5)  # longer than the lease: it is renewed
        assert not follow_task.done()
        store = await Store.open(harness.settings.database)
        await leader.begin_term(store)
        leader.note_close()
    other = await follow_task
    assert not await store.is_leader()
    assert loss_reasons == []
    for one in (store, other):
        await one.close()


@pytest.mark.asyncio
async def test_a_leader_ends_if_it_finds_another_term_or_loses_its_lease(harness, wait_until, monkeypatch):
    monkeypatch.setattr(leading_module, "RENEW_SECONDS", 0.2)
    loss_reasons: list[str] = []
    bus = await _bus(harness)
    async with keep_lead(bus, print, on_lost=loss_reasons.append) as leader:
        store, other = [await Store.open(harness.settings.database) for _ in range(2)]
        await leader.begin_term(store)
        leader._proven_until = 0.0
        await asyncio.to_thread(leader.check_lead)  # the test blocks the loop on purpose
        assert loss_reasons == [], "the term is ours"
        assert leader._proven_until > 0
        await other.begin_term()

        def look() -> None:
            leader._proven_until = 0.0  # slightly earlier: the lease is still renewed
            leader.check_lead()

        await asyncio.to_thread(look)  # the test blocks the loop on purpose
        assert loss_reasons[0] == "Another bot has begun to write to this database."
        loss_reasons.clear()
        await wait_until(lambda: loss_reasons)  # the regular reading finds it too
        assert leader._claim is not None
        await bus.js.purge_stream("KV_leaders")
        loss_reasons.clear()
        await wait_until(lambda: "Another bot has led meanwhile." in loss_reasons)
        leader.note_close()
        for one in (store, other):
            await one.close()


@pytest.fixture
def short_intervals(monkeypatch):
    monkeypatch.setattr(leading_module, "NOTICE_SECONDS", 0.4)
    monkeypatch.setattr(leading_module, "RENEW_SECONDS", 0.2)  # well below the tests' lease of a second
    monkeypatch.setattr(leading_module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(leader_election, "DEAD_SECONDS", 0.6)
    monkeypatch.setattr(leader_election, "POLL_SECONDS", 0.02)


@asynccontextmanager
async def lead_with_store(
    url: str, loss_reasons: list[str], bus: Bus | None = None
) -> AsyncIterator[tuple[Store, Leader]]:
    """Like the app, it closes the store before the leader resigns."""
    async with keep_lead(bus, print, on_lost=loss_reasons.append) as leader:
        store = await Store.open(url)
        try:
            await leader.begin_term(store)
            yield store, leader
        finally:
            leader.note_close()
            await store.close()


@pytest.mark.asyncio
async def test_without_a_shared_broker_a_second_bot_is_refused_while_the_first_lives(
    database: str, short_intervals, monkeypatch
):
    loss_reasons: list[str] = []
    async with lead_with_store(database, loss_reasons) as (first, _):
        with pytest.raises(UserError, match=r"Another bot leads on this database \(bot-.+\): stop it first"):
            async with lead_with_store(database, loss_reasons):
                pass
        assert await first.is_leader()
    monkeypatch.setattr(leading_module, "NOTICE_SECONDS", 60.0)
    monkeypatch.setattr(leader_election, "DEAD_SECONDS", 60.0)
    async with asyncio.timeout(5), lead_with_store(database, loss_reasons) as (second, _):  # the first ended cleanly
        assert await second.is_leader()
    assert loss_reasons == []


@pytest.mark.asyncio
async def test_of_two_bots_that_start_at_once_one_is_refused(database: str, short_intervals):
    loss_reasons: list[str] = []
    one_ended = asyncio.Event()

    async def bot() -> None:
        try:
            async with lead_with_store(database, loss_reasons):
                await one_ended.wait()
        finally:
            one_ended.set()

    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(bot(), bot(), return_exceptions=True)
    assert sorted(map(type, outcomes), key=str) == sorted([type(None), UserError], key=str)
    assert loss_reasons == []


@pytest.mark.asyncio
@pytest.mark.parametrize("is_leader", [False, True], ids=["alone", "led"])
async def test_a_new_leader_gives_one_that_ended_uncleanly_the_time_to_notice(
    harness, database: str, short_intervals, is_leader
):
    before = await Store.open(database)
    loss_reasons = list[str]()
    await before.begin_term("bot-that-was-cut-off")  # and sends no heartbeat
    started_at = boot_seconds()
    async with lead_with_store(database, loss_reasons, await _bus(harness) if is_leader else None) as (after, _):
        assert boot_seconds() - started_at >= leader_election.DEAD_SECONDS + leading_module.NOTICE_SECONDS
        assert await after.is_leader()
        with pytest.raises(NotLeader):
            await before.write(lambda _: None)
    await before.close()


@pytest.mark.asyncio
async def test_a_bot_stopped_before_its_predecessor_can_notice_leaves_its_term_open(database: str, short_intervals):
    before = await Store.open(database)
    await before.begin_term("bot-that-was-cut-off")

    async def bot() -> None:
        async with lead_with_store(database, []):
            raise AssertionError("it is stopped before this")

    bot_task = asyncio.create_task(bot())
    async with asyncio.timeout(5):
        while await before.is_leader():
            await asyncio.sleep(0.02)
    bot_task.cancel()
    await asyncio.wait([bot_task])
    assert not (await before.query(leader_terms.read_newest_term)).is_ended
    await before.close()


@pytest.mark.asyncio
async def test_without_a_shared_broker_a_later_term_also_ends_the_bot(database: str, short_intervals, wait_until):
    loss_reasons: list[str] = []
    async with lead_with_store(database, loss_reasons) as (first, _):
        other = await Store.open(database)
        await other.begin_term()
        await wait_until(lambda: loss_reasons)
        assert loss_reasons[0] == "Another bot has begun to write to this database."
        with pytest.raises(NotLeader):
            await first.write(lambda _: None)
        await other.close()


@pytest.mark.asyncio
async def test_without_a_lease_the_check_blocks_only_after_a_suspension(database: str, short_intervals, monkeypatch):
    monkeypatch.setattr(leading_module, "CONFIRM_SECONDS", 60.0)
    loss_reasons: list[str] = []
    async with lead_with_store(database, loss_reasons) as (_, leader):
        other = await Store.open(database)
        await other.begin_term()
        leader._proven_until = 0.0
        leader._checked_at = boot_seconds()
        await asyncio.to_thread(leader.check_lead)
        assert loss_reasons == [], "awake: the term is read beside the work"
        leader._checked_at = 0.0
        await other.close()
        await asyncio.to_thread(leader.check_lead)
        assert loss_reasons == ["Another bot has begun to write to this database."]
        loss_reasons.clear()
        leader._checked_at = 0.0
        monkeypatch.setattr(leader, "_confirm_term", _raise_unavailable)
        await asyncio.to_thread(leader.check_lead)
        assert loss_reasons == [], "the database is away for every bot"


async def _raise_unavailable() -> None:
    raise DatabaseUnavailable("away")


@pytest.mark.asyncio
async def test_a_bot_that_lost_its_lease_sends_no_heartbeat(harness, database: str, short_intervals, monkeypatch):
    monkeypatch.setattr(leading_module, "RENEW_SECONDS", 60.0)
    async with lead_with_store(database, [], await _bus(harness)) as (store, leader):
        assert await leader_election.is_leader_alive(store)
        leader._lease_until = 0.0
        assert not await leader_election.is_leader_alive(store)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_standby_is_refused_only_if_it_has_another_database(
    harness, database: str, short_intervals, new_database_url
):
    other = await Store.open(await asyncio.to_thread(new_database_url, "sqlite"))
    assert await read_store_id(str(other.database.writer.url)) == ""
    await other.begin_term()
    assert len(await read_store_id(str(other.database.writer.url))) == 26
    notices: list[str] = []
    async with lead_with_store(database, [], await _bus(harness)) as (store, _):
        for url in (str(other.database.writer.url), f"sqlite:///{harness.settings.data.parent / 'new.sqlite'}"):
            with pytest.raises(
                UserError, match=r"\(bot-[^.]+\) has another database: set DATABASE_URL .+ DARKROOM_PICTURES_URL"
            ) as error:
                async with asyncio.timeout(10), keep_lead(await _bus(harness), notices.append, database_url=url):
                    pass
            assert error.value.status == 400
        notices.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3), keep_lead(await _bus(harness), notices.append, database_url=database):
                pass
        assert len(notices) == 1
        assert await store.is_leader()
    await other.close()


@pytest.mark.asyncio
@pytest.mark.may_block("migrations are read on the store's own thread")
async def test_a_database_has_no_id_before_its_first_term(empty_database: str):
    assert await read_store_id(empty_database) == "", "it has no table"
    store = await Store.open(empty_database)
    try:
        assert await read_store_id(empty_database) == ""
        term = await store.begin_term()
        assert term is not None
        assert await read_store_id(empty_database) == term.store != ""
    finally:
        await store.close()


def test_a_bot_name_leaves_room_for_the_store_id(monkeypatch):
    monkeypatch.setattr(leader_election.socket, "gethostname", lambda: "a_long.name." * 9)
    monkeypatch.setattr(leader_election.os, "getpid", lambda: 4194304)
    assert decode(encode(ClaimHolder(worker=f"{leader_election.process_name()}.{'0' * 26}")), ClaimHolder)


class Bot:
    """A `darkroom bot` with its own process and data folder."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.lines = list[str]()
        self.read_task = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, harness: Any, name: str, **variables: str) -> Bot:
        folder = harness.settings.data.parent / name
        env = (
            ENV
            | {
                "DATABASE_URL": f"sqlite:///{harness.settings.data / 'shared.sqlite'}",
                "DARKROOM_PICTURES_URL": str(harness.settings.data / "pictures"),
                "DARKROOM_NATS": harness.broker.url,
                "DARKROOM_NATS_TOKEN": harness.broker.token,
            }
            | variables
        )
        command = [sys.executable, "-m", "bot", "bot", "--port", "0", "--data", str(folder)]
        stdin = asyncio.subprocess.PIPE
        output_options = asyncio.subprocess.STDOUT
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=stdin, stderr=output_options)
        bot = cls(process, folder)
        harness.stack.push_async_callback(bot.stop)
        return bot

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode())

    def has_output(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    async def request(self, path: str, value: object = None) -> Any:
        url = json.loads((self.folder / "running.json").read_text())["url"]
        body = None if value is None else json.dumps(value).encode()

        def call() -> Any:
            headers = {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(url + path, body, headers), timeout=20) as answer:
                return json.load(answer)

        return await asyncio.to_thread(call)

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self.read_task.cancel()
        print(f"--- {self.folder.name}", *self.lines, sep="\n")  # shown if the test fails

    async def suspend(self, database: Path) -> None:
        """Suspends the bot between two writes: a process suspended within one keeps SQLite's lock from all others."""
        with closing(
            sqlite3.connect(database, timeout=30, isolation_level=None, check_same_thread=False)
        ) as connection:
            await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
            self.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.timeout(180)
async def test_a_standby_takes_over_after_a_kill_and_a_suspended_leader_ends_when_it_wakes(harness, wait_until):
    worker, _ = await harness.start_worker()
    first = await Bot.start(harness, "first")
    await wait_until(lambda: first.has_output("Darkroom is open"), 30)
    second = await Bot.start(harness, "second")
    await wait_until(lambda: second.has_output("stands by"), 30)
    worker.run_gate.clear()
    jobs = [(await first.request("/api/jobs", {"prompt": "a lamp --count 1"}))["id"] for _ in range(3)]
    await wait_until(lambda: worker.started_jobs, 30)
    first.process.kill()
    await wait_until(lambda: second.has_output("Darkroom is open"), 60)
    third = await Bot.start(harness, "third")  # started only now: of two standbys either may take over
    await wait_until(lambda: third.has_output("stands by"), 30)
    foreign_bot = await Bot.start(harness, "stranger", DATABASE_URL="")
    async with asyncio.timeout(30):
        assert await foreign_bot.process.wait() == 2
    await wait_until(lambda: foreign_bot.has_output("has another database: set DATABASE_URL"))
    await second.suspend(harness.settings.data / "shared.sqlite")
    await wait_until(lambda: third.has_output("Darkroom is open"), 60)
    worker.run_gate.set()
    jobs.append((await third.request("/api/jobs", {"prompt": "a cat --count 1"}))["id"])
    store = await Store.open(f"sqlite:///{harness.settings.data / 'shared.sqlite'}")

    async def all_finished() -> bool:
        records = await store.query(queries.get_jobs, jobs)
        return {records[job].state for job in jobs} == {"finished"}

    await wait_until(all_finished, 60)
    second.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(30):
        assert await second.process.wait() == EXIT_CODE
    assert third.process.returncode is None
    audit_entries = await store.query(queries.list_audit, jobs)
    assert sorted(entry.job for entry in audit_entries if entry.target == "finished") == sorted(jobs)
    await store.close()
    with sqlite3.connect(harness.settings.data / "shared.sqlite") as connection:
        assert connection.execute("SELECT term FROM terms").fetchall() == [(3,)]
