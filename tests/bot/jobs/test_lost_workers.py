"""A job that loses its workers is given up only where they point at it; else it is tried again, after a pause."""

from __future__ import annotations

import pytest

from bot.domain.dto import Member
from bot.policy import worker_losses
from bot.policy.worker_losses import LossLog
from engine.contract import JobHandedBack, JobStarted

BEN = Member("local:ben", "Ben", "local")


class HandWorkers:
    """Reports by hand, under any worker's name. An epoch before `first` would belong to a lost broker store."""

    def __init__(self, bus, first: int) -> None:
        self.bus = bus
        self.first = first

    async def report_start(self, job: str, number: int, worker: str = "hand", step: int = 0) -> None:
        await self.bus.publish_result(worker, JobStarted(job=job, epoch=self.first + number, worker=worker, step=step))


async def open_with_jobs(harness, destination, *members, has_patrol=False):
    app = await harness.open_app()
    app.queue.patrol.lease = 1.0 if has_patrol else 60.0  # these workers hold no claims
    worker = await harness.make_worker("hand")
    await worker.announce()
    accepted = [(await app.services.jobs.imagine("a lamp --count 1", one, destination))[0].job for one in members]
    for _ in accepted:
        await worker.take_job()
    app.queue.active_jobs.losses = LossLog()  # as if the bot had run for long
    return app, HandWorkers(worker.bus, await worker.bus.read_first_epoch()), accepted


@pytest.mark.asyncio
async def test_a_job_whose_three_workers_vanish_in_a_quiet_house_is_poison(harness, wait_until, ann, destination):
    app, workers, (job,) = await open_with_jobs(harness, destination, ann)
    for number in range(4):
        await workers.report_start(job, number)

    async def has_failed():
        return (await app.store.get_job(job)).state == "failed"

    await wait_until(has_failed)
    record = await app.store.get_job(job)
    assert (record.blame, record.charged) == ("worker", 0.0)
    assert record.reason == "It was tried 3 times and never got further."


@pytest.mark.asyncio
@pytest.mark.parametrize("other_fault", ["another worker is lost", "the broker was away"])
async def test_a_job_is_tried_again_when_other_things_break_meanwhile(
    harness, wait_until, ann, destination, other_fault
):
    app, workers, (job, other) = await open_with_jobs(harness, destination, ann, BEN)
    if other_fault == "the broker was away":
        await app.queue.dispatcher.handle_reconnect()
    else:
        for number in range(2):
            await workers.report_start(other, number, "elsewhere", step=10 * number)
    for number in range(6):
        await workers.report_start(job, number)

    async def has_lost_five():
        return (await app.store.get_job(job)).attempts_without_progress == 5

    await wait_until(has_lost_five)
    assert (await app.store.get_job(job)).state == "running"
    await workers.report_start(job, 5)  # the same report again
    await workers.report_start(job, 6, step=20)

    async def has_progress():
        return (await app.store.get_job(job)).attempts_without_progress == 0

    await wait_until(has_progress)


@pytest.mark.asyncio
async def test_an_orderly_stop_is_no_loss(harness, wait_until, ann, destination):
    app, workers, (job,) = await open_with_jobs(harness, destination, ann)
    for number in range(6):
        await workers.report_start(job, number)
        await workers.bus.publish_result("hand", JobHandedBack(job=job, epoch=workers.first + number))

    async def is_handed_back():
        record = await app.store.get_job(job)
        return record.epoch == workers.first + 5 and not record.worker

    await wait_until(is_handed_back)
    record = await app.store.get_job(job)
    assert (record.state, record.attempts_without_progress) == ("running", -1)
    assert not app.queue.active_jobs.losses.points_at(job, 9)


@pytest.mark.asyncio
async def test_after_two_losses_only_a_pause_brings_the_job_back(harness, wait_until, ann, destination, monkeypatch):
    monkeypatch.setattr(worker_losses, "FIRST_PAUSE", 3.0)
    app, workers, (job,) = await open_with_jobs(harness, destination, ann, has_patrol=True)
    await app.queue.dispatcher.handle_reconnect()
    for number in range(3):
        await workers.report_start(job, number)
    active_jobs = app.queue.active_jobs
    await wait_until(lambda: job in active_jobs.by_id and active_jobs.by_id[job].record.attempts_without_progress == 2)
    last_worker, _ = await harness.start_worker("last")
    await wait_until(lambda: job in active_jobs.next_attempt_at, 20)
    assert not last_worker.started_jobs

    async def is_finished():
        return (await app.store.get_job(job)).state == "finished"

    await wait_until(is_finished, 30)
    assert (await app.store.get_job(job)).attempt == 2
    assert not active_jobs.next_attempt_at
