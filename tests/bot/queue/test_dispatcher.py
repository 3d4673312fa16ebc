"""The dispatcher and the patrol over a real broker: fair, bounded, idempotent, and nothing stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import pytest
from sqlalchemy import text

from bot.app.settings import load_settings
from bot.domain.dto import Member
from bot.domain.events import JobEnded, QueueMoved
from bot.queue.dispatcher import overbook_share
from bot.store.jobs import queries
from bot.store.jobs.records import AuditEntry
from bot.store.transitions import job_admin
from engine.bus import subjects
from engine.contract import JobFailed, JobStarted

BOB = Member("local:bob", "Bob", "local")


async def submit_jobs(house, member, here, times=1, text="a lamp --count 4"):
    return [(await house.services.jobs.imagine(text, member, here))[0].job for _ in range(times)]


def read_states(house, jobs):
    async def read():
        found = await house.store.query(queries.get_jobs, jobs)
        return [found[job].state for job in jobs]

    return read()


def all_have_state(house, jobs, *allowed):
    async def check():
        return all(state in allowed for state in await read_states(house, jobs))

    return check


async def wait_for_worker(house, until):
    await until(lambda: house.services.live_workers())


@pytest.mark.parametrize(("rows", "beyond"), [(1, 12), (8, 96), (16, 96), (32, 96), (96, 96), (320, 320)])
def test_pools_with_fewer_rows_are_overbooked_more(rows, beyond):
    assert rows * overbook_share(rows) == beyond


@pytest.mark.asyncio
async def test_dispatch_stays_within_the_workers_rows_and_lets_a_newcomer_in(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=16)
    apprentice.go.clear()
    await wait_for_worker(house, until)
    mine = await submit_jobs(house, ann, here, 4)
    await until(lambda: len(apprentice.begun) == 2)
    (other,) = await submit_jobs(house, BOB, here)
    await until(lambda: other in apprentice.begun)
    assert await read_states(house, mine) == ["running", "running", "queued", "queued"]
    queue = await house.services.job_views.load_queue("local")
    assert [view.id for view in queue] == [mine[0], mine[1], other, mine[2], mine[3]]
    assert [view.jobs_ahead for view in queue] == [None, None, None, 0, 1]
    assert queue[-1].wait_reason == "1 ahead of it."
    assert queue[-1].eta > queue[-2].eta > 0
    apprentice.go.set()
    await until(all_have_state(house, [*mine, other], "finished"))


@pytest.mark.asyncio
async def test_a_members_running_jobs_stay_within_their_limit(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=1000)
    apprentice.go.clear()
    await wait_for_worker(house, until)
    mine = await submit_jobs(house, ann, here, 5)
    await until(lambda: len(apprentice.begun) == 3)
    await house.queue.dispatcher.run_round()
    assert await read_states(house, mine) == ["running"] * 3 + ["queued"] * 2
    assert (await house.services.job_views.load_view(mine[3])).wait_reason.startswith("3 of this member's run already")
    apprentice.go.set()
    await until(all_have_state(house, mine, "finished"))


@pytest.mark.asyncio
async def test_without_a_worker_a_job_waits_and_says_so(workplace, until, ann, here):
    house = await workplace.house()
    (ticket,) = await house.services.jobs.imagine("a lamp", ann, here)
    assert (ticket.has_worker, ticket.eta) == (False, None)
    assert any("No worker is online" in note for note in ticket.notes)
    assert (ticket.steps, ticket.sampler) == (1000, "ddpm")
    view = await house.services.job_views.load_view(ticket.job)
    assert (view.state, view.has_worker, view.wait_reason) == ("queued", False, "No worker is online for embedded.")
    await workplace.worker()
    await until(all_have_state(house, [ticket.job], "finished"))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_with_a_corrupt_row_fails_and_the_jobs_behind_it_run(workplace, until, ann, here):
    house = await workplace.house()
    spoilt, fine = await submit_jobs(house, ann, here, 2)
    spoil = text("UPDATE jobs SET task = x'00' WHERE id = :id")
    await house.store.write(lambda connection: connection.execute(spoil, {"id": spoilt}) and None)
    async with house.feed.subscribe(spoilt) as moments:
        await workplace.worker()
        await until(all_have_state(house, [fine], "finished"))
        async with asyncio.timeout(10):
            while not isinstance(moment := await anext(moments), JobEnded):
                continue
    assert moment.state == "failed"


@pytest.mark.asyncio
async def test_places_in_the_queue_are_published(workplace, until, ann, here):
    house = await workplace.house()
    async with house.feed.subscribe() as moments:
        first, second = await submit_jobs(house, ann, here, 2)
        async with asyncio.timeout(10):
            places = {}
            while places.keys() != {first, second}:
                moment = await anext(moments)
                assert isinstance(moment, QueueMoved)
                places[moment.job] = moment
    assert [places[first].jobs_ahead, places[second].jobs_ahead] == [0, 1]
    assert places[first].eta is None


async def _start_running_job(workplace, until, ann, here):
    """An app, its worker, which stops halfway through a job, and that job."""
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    await wait_for_worker(house, until)
    (job,) = await submit_jobs(house, ann, here)
    await until(all_have_state(house, [job], "running"))
    return house, apprentice, job


async def _send_jobs_to_idle_worker(workplace, until, ann, here):
    """Two jobs that were sent to a worker which only announces itself; the app has closed since."""
    async with workplace.visit() as house:
        bus = await workplace.bus()
        apprentice = await workplace.hand("idle")
        await apprentice.announce()
        await wait_for_worker(house, until)
        jobs = await submit_jobs(house, ann, here, 2)
        await until(all_have_state(house, jobs, "sent"))
    return bus, jobs


@pytest.mark.slow
@pytest.mark.asyncio
async def test_messages_that_the_broker_lost_are_published_again_at_the_start(workplace, until, ann, here):
    bus, jobs = await _send_jobs_to_idle_worker(workplace, until, ann, here)
    await bus.js.purge_stream(subjects.WORK)
    apprentice, _ = await workplace.worker("second")
    house = await workplace.house()
    await until(all_have_state(house, jobs, "finished"))
    assert sorted(apprentice.begun) == sorted(jobs)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_messages_that_the_broker_has_are_not_duplicated_at_the_start(workplace, until, ann, here):
    bus, jobs = await _send_jobs_to_idle_worker(workplace, until, ann, here)
    house = await workplace.house()
    await house.queue.dispatcher.republish()
    assert (await bus.js.stream_info(subjects.WORK)).state.messages == 2
    assert await read_states(house, jobs) == ["sent", "sent"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_broker_that_lost_its_store_gets_every_message_again(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=16)
    apprentice.go.clear()
    await wait_for_worker(house, until)
    jobs = await submit_jobs(house, ann, here, 3)
    await until(lambda: len(apprentice.begun) == 2)
    apprentice.full = True  # else it might claim a restarted job again and stop halfway
    broker = workplace.broker
    os.kill(broker.pid, signal.SIGKILL)
    (broker.folder / "store").rename(broker.folder / "lost")
    await until(lambda: broker.restarts == 1)
    await workplace.worker("fresh")
    await until(all_have_state(house, jobs[:2], "finished"), 20)
    apprentice.go.set()
    await until(all_have_state(house, jobs, "finished"), 20)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_of_a_dead_worker_continues_elsewhere_and_ends_once(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, task = await workplace.worker("first")
    apprentice.go.clear()
    await wait_for_worker(house, until)
    (job,) = await submit_jobs(house, ann, here)
    await until(all_have_state(house, [job], "running"))
    first = await house.store.get_job(job)
    await apprentice.vanish(task)
    await workplace.worker("second")
    await until(all_have_state(house, [job], "finished"))
    record = await house.store.get_job(job)
    assert record.worker == "second"
    assert record.epoch > first.epoch
    assert record.attempt == 1
    assert record.charged == pytest.approx(record.cost / 2)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_without_a_claim_is_queued_again(workplace, until, ann, here):
    house = await workplace.house()
    apprentice = await workplace.hand("liar")
    await apprentice.announce()
    await wait_for_worker(house, until)
    (job,) = await submit_jobs(house, ann, here)
    await until(all_have_state(house, [job], "sent"))
    delivered = await apprentice.bus.pull_job(["default"], timeout=2)
    await delivered.ack()
    await apprentice.say(JobStarted(job=job, epoch=5, worker="liar"))
    await until(all_have_state(house, [job], "running"))
    await workplace.worker("honest")
    await until(all_have_state(house, [job], "finished"), 20)
    record = await house.store.get_job(job)
    assert (record.attempt, record.worker) == (2, "honest")


@pytest.mark.asyncio
async def test_a_job_that_always_fails_at_its_worker_gets_three_attempts_and_costs_nothing(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.way = lambda job, epoch: JobFailed(
        job=job.id, epoch=epoch, reason="The device is gone.", blame="worker", retry=True
    )
    await wait_for_worker(house, until)
    (job,) = await submit_jobs(house, ann, here)
    await until(all_have_state(house, [job], "failed"))
    record = await house.store.get_job(job)
    assert (record.reason, record.blame, record.charged) == ("The device is gone.", "worker", 0.0)
    assert apprentice.begun == [job] * 3


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_that_waits_too_long_fails_and_costs_nothing(workplace, until, ann, here):
    workplace.settings = load_settings(data=workplace.settings.data, max_age=60)
    now = [1_000_000.0]
    house = await workplace.house(clock=lambda: now[0])
    (job,) = await submit_jobs(house, ann, here)
    now[0] += 59
    await house.queue.patrol.run_round()
    assert (await house.services.job_views.load_view(job)).state == "queued"
    now[0] += 2
    await house.queue.patrol.run_round()
    view = await house.services.job_views.load_view(job)
    assert (view.state, view.cost) == ("failed", 0.0)
    assert "waited too long" in view.reason


@pytest.mark.asyncio
async def test_a_running_job_past_its_deadline_fails_with_a_reason_of_its_own(workplace, until, ann, here):
    house, _, job = await _start_running_job(workplace, until, ann, here)
    house.queue.patrol._clock = lambda: time.time() + workplace.settings.max_age + 1
    await house.queue.patrol.run_round()
    view = await house.services.job_views.load_view(job)
    assert (view.state, view.reason) == ("failed", "It was not done in time; nothing was charged.")


@pytest.mark.asyncio
async def test_a_waiting_job_is_sent_with_the_current_weights_of_its_model(workplace, until, ann, here):
    house = await workplace.house()
    apprentice = await workplace.hand("hand")
    apprentice.rows = 0
    await apprentice.announce()
    await wait_for_worker(house, until)
    (job,) = await submit_jobs(house, ann, here)
    assert (await house.services.job_views.load_view(job)).task.revision == "1"
    apprentice.revision, apprentice.rows = "2", 32
    again = await apprentice.handed()
    assert (again.id, again.task.revision) == (job, "2")


@pytest.mark.asyncio
async def test_a_job_can_be_cancelled_in_every_state(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=8)
    apprentice.go.clear()
    await wait_for_worker(house, until)
    running, waiting = await submit_jobs(house, ann, here, 2)
    await until(all_have_state(house, [running], "running"))
    assert "nothing was charged" in await house.services.jobs.cancel(waiting, ann)
    assert await read_states(house, [waiting]) == ["cancelled"]
    assert (await house.services.jobs.cancel(running, ann)).startswith("Cancelling")
    await until(all_have_state(house, [running], "cancelled"))
    assert await house.services.jobs.cancel(running, ann) == "Cancelled."
    record = await house.store.get_job(running)
    assert record.charged == pytest.approx(record.cost / 4)
    assert not house.queue.active_jobs.by_id


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_without_a_worker_is_cancelled_at_once(workplace, until, ann, here):
    _, jobs = await _send_jobs_to_idle_worker(workplace, until, ann, here)
    await asyncio.sleep(1.2)  # the worker's presence lapses
    house = await workplace.house()
    assert "no worker" in await house.services.jobs.cancel(jobs[0], ann)
    assert await read_states(house, jobs[:1]) == ["cancelled"]
    assert (await house.store.get_job(jobs[0])).charged == 0.0


@pytest.mark.asyncio
async def test_no_worker_counts_as_lost_while_its_reports_wait(workplace, until, ann, here):
    house, apprentice, job = await _start_running_job(workplace, until, ann, here)
    run, now = house.queue.active_jobs.by_id[job], time.time()
    assert await house.bus.revoke_claim(job, run.record.epoch)
    house.queue.patrol._orphaned_since[job] = now - 60.0
    house.queue.active_jobs.results_behind_until = now + 60.0
    await house.queue.patrol._check_claim(run)
    assert (await house.store.get_job(job)).attempt == 1, "its worker may be done, and its report may still wait"
    house.queue.patrol._orphaned_since[job] = now - 60.0
    house.queue.active_jobs.results_behind_until = now - 1.0
    await house.queue.patrol._check_claim(run)
    assert (await house.store.get_job(job)).attempt == 2
    apprentice.go.set()
    await until(all_have_state(house, [job], "finished"))


@pytest.mark.asyncio
async def test_a_late_requeue_takes_no_claim_from_the_next_worker(workplace, until, ann, here):
    house, _, job = await _start_running_job(workplace, until, ann, here)
    record = await house.store.get_job(job)
    line = AuditEntry(job, time.time(), "running", "queued", record.attempt, 0, job_admin.REQUEUE_NOTE)
    for epoch in (0, record.epoch - 1):
        await house.queue.external_changes._apply_change(replace(line, epoch=epoch))
        assert (await house.bus.get_holder(job)).epoch == record.epoch
    await house.queue.external_changes._apply_change(replace(line, epoch=record.epoch))
    assert await house.bus.get_holder(job) is None


@pytest.mark.asyncio
async def test_streams_that_could_not_be_created_at_reconnection_are_created_later(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await wait_for_worker(house, until)
    for stream in (subjects.RESULTS, subjects.WORK):
        await house.bus.js.delete_stream(stream)
    await house.queue.dispatcher.handle_reconnect()
    (job,) = await submit_jobs(house, ann, here)
    await until(all_have_state(house, [job], "finished"))


@pytest.mark.asyncio
async def test_the_patrol_ends_a_cancelled_job_that_no_worker_answers(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, task = await workplace.worker()
    apprentice.go.clear()
    await wait_for_worker(house, until)
    (job,) = await submit_jobs(house, ann, here)
    await until(all_have_state(house, [job], "running"))
    await apprentice.vanish(task)
    assert (await house.services.jobs.cancel(job, ann)).startswith("Cancelling")
    await until(all_have_state(house, [job], "cancelled"))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_that_finished_while_the_bot_was_away_is_not_sent_again(workplace, until, ann, here):
    hand = await workplace.hand("hand")
    async with workplace.visit() as house:
        await hand.announce()
        await until(lambda: house.services.live_workers())
        (ticket,) = await house.services.jobs.imagine("a lamp --count 1", ann, here)
        async with asyncio.timeout(10):
            while (delivered := await hand.bus.pull_job(["default"], timeout=0.5)) is None:
                await hand.announce()
    claim = await hand.bus.claim_job(ticket.job, "hand")
    await hand.say(JobStarted(job=ticket.job, epoch=claim.epoch, worker="hand"))
    await hand.work(delivered.value, claim.epoch)
    await delivered.ack()
    before = (await hand.bus.js.stream_info(subjects.WORK)).state.last_seq
    house = await workplace.house()
    await until(all_have_state(house, [ticket.job], "finished"))
    await house.queue.dispatcher.run_round()
    assert (await hand.bus.js.stream_info(subjects.WORK)).state.last_seq == before
