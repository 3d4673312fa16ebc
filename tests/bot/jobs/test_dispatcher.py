"""The dispatcher and the patrol over a real broker: fair, bounded, idempotent, and nothing stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from bot.app.settings import load_settings
from bot.domain.dto import Member
from bot.domain.events import JobEnded, QueueMoved
from bot.jobs.dispatch import overbook_share
from bot.jobs.views import MAX_WAITING_SHOWN, select_queue
from bot.store.jobs import queries
from bot.store.jobs.records import AuditEntry
from bot.store.transitions import job_admin
from engine.bus import subjects
from engine.contract import JobFailed, JobStarted
from shared.active_jobs import is_claimed

BOB = Member("local:bob", "Bob", "local")


async def submit_jobs(app, member, destination, times=1, text="a lamp --count 4"):
    return [(await app.services.jobs.imagine(text, member, destination))[0].job for _ in range(times)]


def read_states(app, jobs):
    async def read():
        records = await app.store.query(queries.get_jobs, jobs)
        return [records[job].state for job in jobs]

    return read()


def all_have_state(app, jobs, *allowed_states):
    async def check():
        return all(state in allowed_states for state in await read_states(app, jobs))

    return check


async def wait_for_worker(app, wait_until):
    await wait_until(lambda: app.services.live_workers())


@pytest.mark.parametrize(("rows", "dispatched_rows"), [(1, 12), (8, 96), (16, 96), (32, 96), (96, 96), (320, 320)])
def test_pools_with_fewer_rows_are_overbooked_more(rows, dispatched_rows):
    assert rows * overbook_share(rows) == dispatched_rows


@pytest.mark.asyncio
async def test_dispatch_stays_within_the_workers_rows_and_lets_a_newcomer_in(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker(rows=16)
    worker.run_gate.clear()
    await wait_for_worker(app, wait_until)
    ann_jobs = await submit_jobs(app, ann, destination, 4)
    await wait_until(lambda: len(worker.started_jobs) == 2)
    (other,) = await submit_jobs(app, BOB, destination)
    await wait_until(all_have_state(app, [*ann_jobs[:2], other], "running"))
    assert await read_states(app, ann_jobs) == ["running", "running", "queued", "queued"]
    queue = await app.services.job_views.load_queue("local")
    assert [view.id for view in queue] == [ann_jobs[0], ann_jobs[1], other, ann_jobs[2], ann_jobs[3]]
    assert [view.jobs_ahead for view in queue] == [None, None, None, 0, 1]
    assert queue[-1].wait_reason == "1 ahead of it."
    assert queue[-1].eta > queue[-2].eta > 0
    worker.run_gate.set()
    await wait_until(all_have_state(app, [*ann_jobs, other], "finished"))


def test_a_servers_queue_shows_at_most_a_hundred_waiting_jobs():
    def make_record(job: str, guild: str, state: str) -> Any:
        return SimpleNamespace(id=job, guild=guild, state=state, deleted=None)

    elsewhere = [make_record(f"far{number}", "elsewhere", "running") for number in range(9)]
    waiting = [make_record(f"job{number}", "here", "queued") for number in range(MAX_WAITING_SHOWN + 5)]
    records = {record.id: record for record in (*elsewhere, make_record("drawn", "here", "running"), *waiting)}
    shown = select_queue(records, [record.id for record in reversed(waiting)], "here")
    assert [record.id for record in shown] == ["drawn", *(f"job{number}" for number in range(104, 4, -1))]


@pytest.mark.asyncio
async def test_a_members_running_jobs_stay_within_their_limit(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker(rows=1000)
    worker.run_gate.clear()
    await wait_for_worker(app, wait_until)
    ann_jobs = await submit_jobs(app, ann, destination, 5)
    await wait_until(all_have_state(app, ann_jobs[:3], "running"))
    await app.queue.dispatcher.run_round()
    assert await read_states(app, ann_jobs) == ["running"] * 3 + ["queued"] * 2
    assert (await app.services.job_views.load_view(ann_jobs[3])).wait_reason.startswith(
        "3 of this member's run already"
    )
    worker.run_gate.set()
    await wait_until(all_have_state(app, ann_jobs, "finished"))


@pytest.mark.asyncio
async def test_without_a_worker_a_job_waits_and_says_so(harness, wait_until, ann, destination):
    app = await harness.open_app()
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    assert (accepted.has_worker, accepted.eta) == (False, None)
    assert any("No worker was online" in note for note in accepted.notes)
    assert (accepted.steps, accepted.sampler) == (1000, "ddpm")
    view = await app.services.job_views.load_view(accepted.job)
    assert (view.state, view.has_worker, view.wait_reason) == ("queued", False, "No worker is online for embedded.")
    await harness.start_worker()
    await wait_until(all_have_state(app, [accepted.job], "finished"))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_with_a_corrupt_row_fails_and_the_jobs_behind_it_run(harness, wait_until, ann, destination):
    app = await harness.open_app()
    corrupt_job, valid_job = await submit_jobs(app, ann, destination, 2)
    corrupt_row = text("UPDATE jobs SET task = x'00' WHERE id = :id")
    await app.store.write(lambda connection: connection.execute(corrupt_row, {"id": corrupt_job}) and None)
    async with app.feed.subscribe(corrupt_job) as events:
        await harness.start_worker()
        await wait_until(all_have_state(app, [valid_job], "finished"))
        async with asyncio.timeout(10):
            while not isinstance(event := await anext(events), JobEnded):
                continue
    assert event.state == "failed"


@pytest.mark.asyncio
async def test_places_in_the_queue_are_published(harness, wait_until, ann, destination):
    app = await harness.open_app()
    async with app.feed.subscribe() as events:
        first, second = await submit_jobs(app, ann, destination, 2)
        async with asyncio.timeout(10):
            places = {}
            while places.keys() != {first, second}:
                event = await anext(events)
                assert isinstance(event, QueueMoved)
                places[event.job] = event
    assert [places[first].jobs_ahead, places[second].jobs_ahead] == [0, 1]
    assert places[first].eta is None


async def _start_running_job(harness, wait_until, ann, destination):
    """Starts an app and a worker that stops halfway through a job; returns them and the job."""
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    await wait_for_worker(app, wait_until)
    (job,) = await submit_jobs(app, ann, destination)
    await wait_until(lambda: is_claimed(app, job))
    return app, worker, job


async def _send_jobs_to_idle_worker(harness, wait_until, ann, destination):
    """Sends two jobs to a worker that only announces itself, and closes the app."""
    async with harness.open_temporary_app() as app:
        bus = await harness.connect()
        worker = await harness.make_worker("idle")
        await worker.announce()
        await wait_for_worker(app, wait_until)
        jobs = await submit_jobs(app, ann, destination, 2)
        await wait_until(all_have_state(app, jobs, "sent"))
    return bus, jobs


@pytest.mark.slow
@pytest.mark.asyncio
async def test_messages_that_the_broker_lost_are_published_again_at_the_start(harness, wait_until, ann, destination):
    bus, jobs = await _send_jobs_to_idle_worker(harness, wait_until, ann, destination)
    await bus.js.purge_stream(subjects.WORK)
    worker, _ = await harness.start_worker("second")
    app = await harness.open_app()
    await wait_until(all_have_state(app, jobs, "finished"))
    assert sorted(worker.started_jobs) == sorted(jobs)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_messages_that_the_broker_has_are_not_duplicated_at_the_start(harness, wait_until, ann, destination):
    bus, jobs = await _send_jobs_to_idle_worker(harness, wait_until, ann, destination)
    app = await harness.open_app()
    await app.queue.sender.republish()
    assert (await bus.js.stream_info(subjects.WORK)).state.messages == 2
    assert await read_states(app, jobs) == ["sent", "sent"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_broker_that_lost_its_store_gets_every_message_again(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker(rows=16)
    worker.run_gate.clear()
    await wait_for_worker(app, wait_until)
    jobs = await submit_jobs(app, ann, destination, 3)
    await wait_until(lambda: len(worker.started_jobs) == 2)
    worker.is_full = True  # else it might claim a restarted job again and stop halfway
    broker = harness.broker
    os.kill(broker.pid, signal.SIGKILL)
    (broker.folder / "store").rename(broker.folder / "lost")
    await wait_until(lambda: broker.restarts == 1)
    await harness.start_worker("fresh")
    await wait_until(all_have_state(app, jobs[:2], "finished"), 20)
    worker.run_gate.set()
    await wait_until(all_have_state(app, jobs, "finished"), 20)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_of_a_dead_worker_continues_elsewhere_and_ends_once(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, task = await harness.start_worker("first")
    worker.run_gate.clear()
    await wait_for_worker(app, wait_until)
    (job,) = await submit_jobs(app, ann, destination)
    await wait_until(all_have_state(app, [job], "running"))
    first = await app.store.get_job(job)
    await worker.vanish(task)
    await harness.start_worker("second")
    await wait_until(all_have_state(app, [job], "finished"))
    record = await app.store.get_job(job)
    assert record.worker == "second"
    assert record.epoch > first.epoch
    assert record.attempt == 1
    assert record.charged == pytest.approx(record.cost / 2)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_without_a_claim_is_queued_again(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker = await harness.make_worker("liar")
    await worker.announce()
    await wait_for_worker(app, wait_until)
    (job,) = await submit_jobs(app, ann, destination)
    await wait_until(all_have_state(app, [job], "sent"))
    delivered = await worker.bus.pull_job(["default"], timeout=2)
    await delivered.ack()
    await worker.publish_result(JobStarted(job=job, epoch=5, worker="liar"))
    await wait_until(all_have_state(app, [job], "running"))
    await harness.start_worker("honest")
    await wait_until(all_have_state(app, [job], "finished"), 20)
    record = await app.store.get_job(job)
    assert (record.attempt, record.worker) == (2, "honest")


@pytest.mark.asyncio
async def test_a_job_that_always_fails_at_its_worker_gets_three_attempts_and_costs_nothing(
    harness, wait_until, ann, destination
):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.make_result = lambda job, epoch: JobFailed(
        job=job.id, epoch=epoch, reason="The device is gone.", blame="worker", retry=True
    )
    await wait_for_worker(app, wait_until)
    (job,) = await submit_jobs(app, ann, destination)
    await wait_until(all_have_state(app, [job], "failed"))
    record = await app.store.get_job(job)
    assert (record.reason, record.blame, record.charged) == ("The device is gone.", "worker", 0.0)
    assert worker.started_jobs == [job] * 3


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_that_waits_too_long_fails_and_costs_nothing(harness, wait_until, ann, destination):
    harness.settings = load_settings(data=harness.settings.data, max_job_age=60)
    now = [1_000_000.0]
    app = await harness.open_app(clock=lambda: now[0])
    (job,) = await submit_jobs(app, ann, destination)
    now[0] += 59
    await app.queue.patrol.run_round()
    assert (await app.services.job_views.load_view(job)).state == "queued"
    now[0] += 2
    await app.queue.patrol.run_round()
    view = await app.services.job_views.load_view(job)
    assert (view.state, view.cost) == ("failed", 0.0)
    assert "waited too long" in view.reason


@pytest.mark.asyncio
async def test_a_running_job_past_its_deadline_fails_with_a_reason_of_its_own(harness, wait_until, ann, destination):
    app, _, job = await _start_running_job(harness, wait_until, ann, destination)
    app.queue.patrol.clock = lambda: time.time() + harness.settings.max_job_age + 1
    await app.queue.patrol.run_round()
    view = await app.services.job_views.load_view(job)
    assert (view.state, view.reason) == ("failed", "It was not done in time; nothing was charged.")


@pytest.mark.asyncio
async def test_a_waiting_job_is_sent_with_the_current_weights_of_its_model(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker = await harness.make_worker("hand")
    worker.rows = 0
    await worker.announce()
    await wait_for_worker(app, wait_until)
    (job,) = await submit_jobs(app, ann, destination)
    assert (await app.services.job_views.load_view(job)).task.revision == "1"
    worker.revision = "2"
    worker.rows = 32
    second_pull = await worker.take_job()
    assert (second_pull.id, second_pull.task.revision) == (job, "2")


@pytest.mark.asyncio
async def test_a_job_can_be_cancelled_in_every_state(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker(rows=8)
    worker.run_gate.clear()
    await wait_for_worker(app, wait_until)
    running_job, waiting_job = await submit_jobs(app, ann, destination, 2)
    await wait_until(all_have_state(app, [running_job], "running"))
    assert "nothing was charged" in await app.services.job_control.cancel(waiting_job, ann)
    assert await read_states(app, [waiting_job]) == ["cancelled"]
    assert (await app.services.job_control.cancel(running_job, ann)).startswith("Cancelling")
    await wait_until(all_have_state(app, [running_job], "cancelled"))
    assert await app.services.job_control.cancel(running_job, ann) == "Cancelled."
    record = await app.store.get_job(running_job)
    assert record.charged == pytest.approx(record.cost / 4)
    assert not app.queue.active_jobs.by_id


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_without_a_worker_is_cancelled_at_once(harness, wait_until, ann, destination):
    _, jobs = await _send_jobs_to_idle_worker(harness, wait_until, ann, destination)
    await asyncio.sleep(1.2)  # the worker's presence lapses
    app = await harness.open_app()
    assert "no worker" in await app.services.job_control.cancel(jobs[0], ann)
    assert await read_states(app, jobs[:1]) == ["cancelled"]
    assert (await app.store.get_job(jobs[0])).charged == 0.0


@pytest.mark.asyncio
async def test_no_worker_counts_as_lost_while_its_reports_wait(harness, wait_until, ann, destination):
    app, worker, job = await _start_running_job(harness, wait_until, ann, destination)
    run = app.queue.active_jobs.by_id[job]
    now = time.time()
    assert await app.bus.revoke_claim(job, run.record.epoch)
    app.queue.patrol._orphaned_since[job] = now - 60.0
    app.queue.active_jobs.results_behind_until = now + 60.0
    await app.queue.patrol._check_claim(run)
    assert (await app.store.get_job(job)).attempt == 1, "its worker may be done, and its report may still wait"
    app.queue.patrol._orphaned_since[job] = now - 60.0
    app.queue.active_jobs.results_behind_until = now - 1.0
    await app.queue.patrol._check_claim(run)
    assert (await app.store.get_job(job)).attempt == 2
    worker.run_gate.set()
    await wait_until(all_have_state(app, [job], "finished"))


@pytest.mark.asyncio
async def test_a_late_requeue_takes_no_claim_from_the_next_worker(harness, wait_until, ann, destination):
    app, _, job = await _start_running_job(harness, wait_until, ann, destination)
    record = await app.store.get_job(job)
    line = AuditEntry(job, time.time(), "running", "queued", record.attempt, 0, job_admin.REQUEUE_NOTE)
    for epoch in (0, record.epoch - 1):
        await app.queue.external_changes._apply_change(replace(line, epoch=epoch))
        assert (await app.bus.get_holder(job)).epoch == record.epoch
    await app.queue.external_changes._apply_change(replace(line, epoch=record.epoch))
    assert await app.bus.get_holder(job) is None


@pytest.mark.asyncio
async def test_streams_that_could_not_be_created_at_reconnection_are_created_later(
    harness, wait_until, ann, destination
):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_for_worker(app, wait_until)
    for stream in (subjects.RESULTS, subjects.WORK):
        await app.bus.js.delete_stream(stream)
    await app.queue.dispatcher.handle_reconnect()
    (job,) = await submit_jobs(app, ann, destination)
    await wait_until(all_have_state(app, [job], "finished"))


@pytest.mark.asyncio
async def test_the_patrol_ends_a_cancelled_job_that_no_worker_answers(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, task = await harness.start_worker()
    worker.run_gate.clear()
    await wait_for_worker(app, wait_until)
    (job,) = await submit_jobs(app, ann, destination)
    await wait_until(all_have_state(app, [job], "running"))
    await worker.vanish(task)
    assert (await app.services.job_control.cancel(job, ann)).startswith("Cancelling")
    await wait_until(all_have_state(app, [job], "cancelled"))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_that_finished_while_the_bot_was_offline_is_not_sent_again(harness, wait_until, ann, destination):
    second_worker = await harness.make_worker("hand")
    async with harness.open_temporary_app() as app:
        await second_worker.announce()
        await wait_until(lambda: app.services.live_workers())
        (accepted,) = await app.services.jobs.imagine("a lamp --count 1", ann, destination)
        async with asyncio.timeout(10):
            while (delivered := await second_worker.bus.pull_job(["default"], timeout=0.5)) is None:
                await second_worker.announce()
    claim = await second_worker.bus.claim_job(accepted.job, "hand")
    await second_worker.publish_result(JobStarted(job=accepted.job, epoch=claim.epoch, worker="hand"))
    await second_worker.finish_job(delivered.value, claim.epoch)
    await delivered.ack()
    before = (await second_worker.bus.js.stream_info(subjects.WORK)).state.last_seq
    app = await harness.open_app()
    await wait_until(all_have_state(app, [accepted.job], "finished"))
    await app.queue.dispatcher.run_round()
    assert (await second_worker.bus.js.stream_info(subjects.WORK)).state.last_seq == before
