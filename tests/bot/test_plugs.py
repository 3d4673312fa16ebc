"""Plugs pulled at random, seeded: workers vanish, the broker is killed and loses its store, the house closes."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from bot.store import reads
from bot.views import Member


async def _break(workplace, *, store: bool) -> None:
    broker = workplace.broker
    before = broker.restarts
    os.kill(broker.pid, signal.SIGKILL)
    if store:
        (broker.folder / "store").rename(broker.folder / f"lost-{before}")
    while broker.restarts == before:
        await asyncio.sleep(0.02)


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_job_ends_once_and_is_charged_once(workplace, until, here, seed):
    chance = random.Random(seed)
    members = [Member(f"local:{n}", f"M{n}", "local") for n in range(4)]
    tickets: list[str] = []
    for _ in range(2):  # a third worker lost at the same step would be poison
        async with workplace.visit() as house:
            apprentice, running = await workplace.worker(f"w{chance.randrange(10**6)}", rows=chance.choice([8, 16, 64]))
            await until(lambda house=house: house.studio.workers())
            for member in members:
                (ticket,) = await house.studio.imagine("a lamp --count 2", member, here)
                tickets.append(ticket.job)
                await asyncio.sleep(chance.random() * 0.05)
            await asyncio.sleep(chance.random() * 0.2)
            if chance.random() < 0.6:
                await _break(workplace, store=chance.random() < 0.5)
            await apprentice.vanish(running)
    house = await workplace.house()
    await workplace.worker("last")

    async def over():
        found = await house.store.ask(reads.some, tickets)
        return all(record.ended for record in found.values())

    await until(over, 40)
    records = await house.store.ask(reads.some, tickets)
    assert {record.state for record in records.values()} == {"finished"}
    assert all(record.charged == pytest.approx(record.cost / 2) for record in records.values())
    kept = await house.store.ask(reads.stored, tickets)
    assert len(kept) == len(tickets) * 4
    for one in kept:
        assert await house.pictures.get(one.sha256)
    moves = await house.store.ask(reads.history, tickets)
    assert sorted(move.job for move in moves if move.target == "finished") == sorted(tickets)


@pytest.mark.asyncio
async def test_a_broker_that_loses_its_store_again_and_again_poisons_nobody(workplace, until, ann, here):
    house = await workplace.house()
    jobs: list[str] = []

    def run():
        return house.board.runs[jobs[0]]

    for times in range(5):
        apprentice, running = await workplace.worker(f"w{times}")
        apprentice.go.clear()
        await until(lambda: house.studio.workers())
        if not jobs:
            jobs.append((await house.studio.imagine("a lamp", ann, here))[0].job)
        await until(lambda name=apprentice.name: jobs[0] in house.board.runs and run().record.worker == name, 30)
        await apprentice.frame(run().record.job(), run().epoch, 0, 20)
        await until(lambda: run().step == 20)
        await apprentice.vanish(running)
        await _break(workplace, store=True)
    await workplace.worker("last")

    async def over():
        return (await house.store.record(jobs[0])).ended

    await until(over, 30)
    record = await house.store.record(jobs[0])
    assert (record.state, record.reason, record.charged) == ("finished", "", pytest.approx(record.cost / 2))
