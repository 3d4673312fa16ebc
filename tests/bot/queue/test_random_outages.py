"""Seeded random outages: workers vanish, the broker is killed and loses its store, the bot closes."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from bot.domain.dto import Member
from bot.store.jobs import queries


async def _kill_broker(workplace, *, store: bool) -> None:
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
    rng = random.Random(seed)
    members = [Member(f"local:{n}", f"M{n}", "local") for n in range(4)]
    tickets: list[str] = []
    for _ in range(2):  # a third worker lost at the same step would make it a poison job
        async with workplace.visit() as app:
            worker, running = await workplace.worker(f"w{rng.randrange(10**6)}", rows=rng.choice([8, 16, 64]))
            await until(lambda app=app: app.services.live_workers())
            for member in members:
                (ticket,) = await app.services.jobs.imagine("a lamp --count 2", member, here)
                tickets.append(ticket.job)
                await asyncio.sleep(rng.random() * 0.05)
            await asyncio.sleep(rng.random() * 0.2)
            if rng.random() < 0.6:
                await _kill_broker(workplace, store=rng.random() < 0.5)
            await worker.vanish(running)
    app = await workplace.house()
    await workplace.worker("last")

    async def is_over():
        found = await app.store.query(queries.get_jobs, tickets)
        return all(record.ended for record in found.values())

    await until(is_over, 40)
    records = await app.store.query(queries.get_jobs, tickets)
    assert {record.state for record in records.values()} == {"finished"}
    assert all(record.charged == pytest.approx(record.cost / 2) for record in records.values())
    stored = await app.store.query(queries.list_pictures, tickets)
    assert len(stored) == len(tickets) * 4
    for one in stored:
        assert await app.picture_store.get(one.sha256)
    moves = await app.store.query(queries.list_audit, tickets)
    assert sorted(move.job for move in moves if move.target == "finished") == sorted(tickets)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_broker_that_keeps_losing_its_store_makes_no_poison_job(workplace, until, ann, here):
    app = await workplace.house()
    jobs: list[str] = []

    def run():
        return app.queue.active_jobs.by_id[jobs[0]]

    for times in range(5):
        worker, running = await workplace.worker(f"w{times}")
        worker.go.clear()
        await until(lambda: app.services.live_workers())
        if not jobs:
            jobs.append((await app.services.jobs.imagine("a lamp", ann, here))[0].job)
        await until(lambda name=worker.name: jobs[0] in app.queue.active_jobs.by_id and run().record.worker == name, 30)
        await worker.frame(run().record.to_job(), run().epoch, 0, 20)
        await until(lambda: run().step == 20)
        await worker.vanish(running)
        await _kill_broker(workplace, store=True)
    await workplace.worker("last")

    async def is_over():
        return (await app.store.get_job(jobs[0])).ended

    await until(is_over, 30)
    record = await app.store.get_job(jobs[0])
    assert (record.state, record.reason, record.charged) == ("finished", "", pytest.approx(record.cost / 2))
