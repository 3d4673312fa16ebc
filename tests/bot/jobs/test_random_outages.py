"""Seeded random outages: workers vanish, the broker is killed and loses its store, the bot closes."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from bot.domain.dto import Member
from bot.store.jobs import queries


async def _kill_broker(harness, *, store: bool) -> None:
    broker = harness.broker
    before = broker.restarts
    os.kill(broker.pid, signal.SIGKILL)
    if store:
        (broker.folder / "store").rename(broker.folder / f"lost-{before}")
    while broker.restarts == before:
        await asyncio.sleep(0.02)


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_job_ends_once_and_is_charged_once(harness, wait_until, destination, seed):
    rng = random.Random(seed)
    members = [Member(f"local:{n}", f"M{n}", "local") for n in range(4)]
    accepted_ids: list[str] = []
    for _ in range(2):  # a third worker lost at the same step would make it a poison job
        async with harness.open_temporary_app() as app:
            worker, worker_task = await harness.start_worker(f"w{rng.randrange(10**6)}", rows=rng.choice([8, 16, 64]))
            await wait_until(lambda app=app: app.services.live_workers())
            for member in members:
                (accepted,) = await app.services.jobs.imagine("a lamp --count 2", member, destination)
                accepted_ids.append(accepted.job)
                await asyncio.sleep(rng.random() * 0.05)
            await asyncio.sleep(rng.random() * 0.2)
            if rng.random() < 0.6:
                await _kill_broker(harness, store=rng.random() < 0.5)
            await worker.vanish(worker_task)
    app = await harness.open_app()
    await harness.start_worker("last")

    async def is_over():
        records = await app.store.query(queries.get_jobs, accepted_ids)
        return all(record.ended for record in records.values())

    await wait_until(is_over, 40)
    records = await app.store.query(queries.get_jobs, accepted_ids)
    assert {record.state for record in records.values()} == {"finished"}
    assert all(record.charged == pytest.approx(record.cost / 2) for record in records.values())
    stored_pictures = await app.store.query(queries.list_pictures, accepted_ids)
    assert len(stored_pictures) == len(accepted_ids) * 4
    for one in stored_pictures:
        assert await app.picture_store.get(one.sha256)
    audit_entries = await app.store.query(queries.list_audit, accepted_ids)
    assert sorted(entry.job for entry in audit_entries if entry.target == "finished") == sorted(accepted_ids)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_broker_that_keeps_losing_its_store_makes_no_poison_job(harness, wait_until, ann, destination):
    app = await harness.open_app()
    jobs: list[str] = []

    def run():
        return app.queue.active_jobs.by_id[jobs[0]]

    for times in range(5):
        worker, worker_task = await harness.start_worker(f"w{times}")
        worker.run_gate.clear()
        await wait_until(lambda: app.services.live_workers())
        if not jobs:
            jobs.append((await app.services.jobs.imagine("a lamp", ann, destination))[0].job)
        await wait_until(
            lambda name=worker.name: jobs[0] in app.queue.active_jobs.by_id and run().record.worker == name, 30
        )
        await worker.publish_frame(run().record.to_job(), run().epoch, 0, 20)
        await wait_until(lambda: run().step == 20)
        await worker.vanish(worker_task)
        await _kill_broker(harness, store=True)
    await harness.start_worker("last")

    async def is_over():
        return (await app.store.get_job(jobs[0])).ended

    await wait_until(is_over, 30)
    record = await app.store.get_job(jobs[0])
    assert (record.state, record.reason, record.charged) == ("finished", "", pytest.approx(record.cost / 2))
