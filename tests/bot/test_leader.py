"""One bot is at work: another takes over when it is killed or stopped, and who comes back changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bot import leader as leading_module
from bot.leader import DEPOSED, leading
from bot.store import Deposed, Store, reads
from bot.turns import Loop
from engine.bus import Bus, Kept

ENV = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "DISCORD_"))}


def test_nothing_runs_before_the_look():
    seen: list[str] = []
    with asyncio.Runner(loop_factory=Loop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Loop)
        loop.turns.look = lambda: seen.append("look")
        runner.run(asyncio.sleep(0))
        loop.call_soon(seen.append, "work")
        seen.clear()
        runner.run(asyncio.sleep(0))
        loop.turns.look = None
    assert seen.index("look") < seen.index("work")


@pytest.mark.asyncio
async def test_an_older_term_writes_nothing_any_more(tmp_path):
    url = f"sqlite:///{tmp_path / 'one.sqlite'}"
    first, second = await Store.open(url), await Store.open(url)
    await first.write(lambda _: None)  # nobody leads: no term is asked for
    await first.begin()
    await second.begin()
    assert (await first.leads(), await second.leads()) == (False, True)
    with pytest.raises(Deposed):
        await first.write(lambda _: None)
    await second.write(lambda _: None)
    await first.begin()
    assert not await second.leads()
    for store in (first, second):
        await store.close()


async def _bus(workplace: Any) -> Bus:
    bus = await Bus.connect(workplace.broker.url, workplace.broker.token, kept=Kept(leading=1.0))
    workplace.stack.push_async_callback(bus.close)
    await bus.declare()
    return bus


@pytest.mark.asyncio
async def test_the_second_waits_says_so_and_goes_on_when_the_first_resigns(workplace, until, monkeypatch):
    monkeypatch.setattr(leading_module, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(leading_module, "RENEW_SECONDS", 0.2)
    said: list[str] = []
    lost: list[str] = []
    first, second = await _bus(workplace), await _bus(workplace)

    async def follow() -> Store:
        async with leading(second, said.append, lost=lost.append) as leader:
            store = await Store.open(workplace.settings.database)
            await leader.begin(store)
            leader.end()
            return store

    workplace.settings.data.mkdir(parents=True)
    async with leading(first, said.append, lost=lost.append) as leader:
        following = asyncio.create_task(follow())
        await until(lambda: said)
        assert re.fullmatch(r"Another bot is at work on this broker \(bot-.+\): this one stands by\.", said[0])
        await asyncio.sleep(1.5)  # longer than the lease: it is renewed
        assert not following.done()
        store = await Store.open(workplace.settings.database)
        await leader.begin(store)
        leader.end()
    other = await following
    assert not await store.leads()
    assert lost == []
    for one in (store, other):
        await one.close()


@pytest.mark.asyncio
async def test_who_finds_another_term_or_a_lost_lease_is_over(workplace, until, monkeypatch):
    monkeypatch.setattr(leading_module, "RENEW_SECONDS", 0.2)
    lost: list[str] = []
    workplace.settings.data.mkdir(parents=True)
    async with leading(await _bus(workplace), print, lost=lost.append) as leader:
        store, other = [await Store.open(workplace.settings.database) for _ in range(2)]
        await leader.begin(store)
        leader._until = 0.0
        await asyncio.to_thread(leader.look)  # it blocks, as it shall
        assert lost == [], "the term is ours"
        assert leader._until > 0
        await other.begin()
        leader._until = 0.0
        await asyncio.to_thread(leader.look)  # it blocks, as it shall
        assert lost[0] == "Another bot has begun to write to this database."
        lost.clear()
        await until(lambda: lost)  # the round of readings finds it too
        assert leader._claim is not None
        await leader._bus.js.purge_stream("KV_leaders")
        lost.clear()
        await until(lambda: "Another bot has led meanwhile." in lost)
        leader.end()
        for one in (store, other):
            await one.close()


class Bot:
    """A `darkroom bot` in a process and a data folder of its own."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process, self.folder, self.lines = process, folder, list[str]()
        self.reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, workplace: Any, name: str) -> Bot:
        folder = workplace.settings.data.parent / name
        env = ENV | {
            "DATABASE_URL": f"sqlite:///{workplace.settings.data / 'shared.sqlite'}",
            "PICTURES_URL": str(workplace.settings.data / "pictures"),
            "DARKROOM_NATS": workplace.broker.url,
            "DARKROOM_NATS_TOKEN": workplace.broker.token,
        }
        command = [sys.executable, "-m", "bot", "bot", "--port", "0", "--data", str(folder)]
        pipe, out = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=pipe, stderr=out)
        bot = cls(process, folder)
        workplace.stack.push_async_callback(bot.stop)
        return bot

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode())

    def says(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    async def ask(self, path: str, value: object = None) -> Any:
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
        self.reading.cancel()


@pytest.mark.asyncio
@pytest.mark.timeout(180)
async def test_the_second_goes_on_after_a_kill_and_a_stopped_one_ends_when_it_wakes(workplace, until):
    workplace.settings.data.mkdir(parents=True)
    apprentice, _ = await workplace.worker()
    first = await Bot.start(workplace, "first")
    await until(lambda: first.says("Darkroom is open"), 30)
    second = await Bot.start(workplace, "second")
    await until(lambda: second.says("stands by"), 30)
    apprentice.go.clear()
    jobs = [(await first.ask("/api/jobs", {"prompt": "a lamp --count 1"}))["id"] for _ in range(3)]
    await until(lambda: apprentice.begun, 30)
    first.process.kill()
    third = await Bot.start(workplace, "third")
    await until(lambda: second.says("Darkroom is open"), 60)
    assert third.process.returncode is None
    await until(lambda: third.says("stands by"), 30)
    second.process.send_signal(signal.SIGSTOP)
    await until(lambda: third.says("Darkroom is open"), 60)
    apprentice.go.set()
    jobs.append((await third.ask("/api/jobs", {"prompt": "a cat --count 1"}))["id"])
    store = await Store.open(f"sqlite:///{workplace.settings.data / 'shared.sqlite'}")

    async def over() -> bool:
        found = await store.ask(reads.some, jobs)
        return {found[job].state for job in jobs} == {"finished"}

    await until(over, 60)
    second.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(30):
        assert await second.process.wait() == DEPOSED
    assert third.process.returncode is None
    moves = await store.ask(reads.history, jobs)
    assert sorted(entry.job for entry in moves if entry.target == "finished") == sorted(jobs)
    await store.close()
    with sqlite3.connect(workplace.settings.data / "shared.sqlite") as connection:
        assert connection.execute("SELECT term FROM terms").fetchall() == [(3,)]
