"""The dispatcher and the patrol over a real broker: fair, bounded, idempotent, and nothing stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import pytest
from sqlalchemy import text

from bot.config import load
from bot.feed import Queued, Settled
from bot.queue.dispatcher import overbook
from bot.store import operating, reads
from bot.store.records import Entry
from bot.views import Member
from engine.bus import subjects
from engine.job import Failed, Started

BOB = Member("local:bob", "Bob", "local")


async def ask(house, member, here, times=1, text="a lamp --count 4"):
    return [(await house.studio.imagine(text, member, here))[0].job for _ in range(times)]


def states(house, jobs):
    async def read():
        found = await house.store.ask(reads.some, jobs)
        return [found[job].state for job in jobs]

    return read()


def all_in(house, jobs, *wanted):
    async def check():
        return all(state in wanted for state in await states(house, jobs))

    return check


async def ready(house, until):
    await until(lambda: house.studio.workers())


@pytest.mark.parametrize(("rows", "beyond"), [(1, 12), (8, 96), (16, 96), (32, 96), (96, 96), (320, 320)])
def test_the_fewer_rows_a_pool_has_the_further_newcomers_may_go_beyond_them(rows, beyond):
    assert rows * overbook(rows) == beyond


@pytest.mark.asyncio
async def test_no_more_than_the_workers_rows_are_sent_and_a_newcomer_gets_in(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=16)
    apprentice.go.clear()
    await ready(house, until)
    mine = await ask(house, ann, here, 4)
    await until(lambda: len(apprentice.begun) == 2)
    (other,) = await ask(house, BOB, here)
    await until(lambda: other in apprentice.begun)
    assert await states(house, mine) == ["running", "running", "queued", "queued"]
    queue = await house.studio.queue("local")
    assert [view.id for view in queue] == [mine[0], mine[1], other, mine[2], mine[3]]
    assert [view.ahead for view in queue] == [None, None, None, 0, 1]
    assert queue[-1].why == "1 ahead of it."
    assert queue[-1].eta > queue[-2].eta > 0
    apprentice.go.set()
    await until(all_in(house, [*mine, other], "finished"))


@pytest.mark.asyncio
async def test_no_more_of_a_members_jobs_run_than_the_limit_says(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=1000)
    apprentice.go.clear()
    await ready(house, until)
    mine = await ask(house, ann, here, 5)
    await until(lambda: len(apprentice.begun) == 3)
    await house.dispatcher.round()
    assert await states(house, mine) == ["running"] * 3 + ["queued"] * 2
    assert (await house.studio.view(mine[3])).why.startswith("3 of this member's run already")
    apprentice.go.set()
    await until(all_in(house, mine, "finished"))


@pytest.mark.asyncio
async def test_without_a_worker_it_waits_and_says_so(workplace, until, ann, here):
    house = await workplace.house()
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    assert (ticket.worker, ticket.eta) == (False, None)
    assert any("No worker is online" in note for note in ticket.notes)
    assert (ticket.steps, ticket.sampler) == (1000, "ddpm")
    view = await house.studio.view(ticket.job)
    assert (view.state, view.worker, view.why) == ("queued", False, "No worker is online for embedded.")
    await workplace.worker()
    await until(all_in(house, [ticket.job], "finished"))


@pytest.mark.asyncio
async def test_a_job_spoilt_under_our_hands_fails_and_those_behind_it_run(workplace, until, ann, here):
    house = await workplace.house()
    spoilt, fine = await ask(house, ann, here, 2)
    spoil = text("UPDATE jobs SET task = x'00' WHERE id = :id")
    await house.store.write(lambda connection: connection.execute(spoil, {"id": spoilt}) and None)
    async with house.feed.subscribe(spoilt) as moments:
        await workplace.worker()
        await until(all_in(house, [fine], "finished"))
        async with asyncio.timeout(10):
            while not isinstance(moment := await anext(moments), Settled):
                continue
    assert moment.state == "failed"


@pytest.mark.asyncio
async def test_places_in_the_queue_are_told(workplace, until, ann, here):
    house = await workplace.house()
    async with house.feed.subscribe() as moments:
        first, second = await ask(house, ann, here, 2)
        async with asyncio.timeout(10):
            told = {}
            while told.keys() != {first, second}:
                moment = await anext(moments)
                assert isinstance(moment, Queued)
                told[moment.job] = moment
    assert [told[first].place, told[second].place] == [0, 1]
    assert told[first].eta is None


async def _running(workplace, until, ann, here):
    """A house, its worker, which stands still in the middle of a job, and that job."""
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    await ready(house, until)
    (job,) = await ask(house, ann, here)
    await until(all_in(house, [job], "running"))
    return house, apprentice, job


async def _sent_but_not_begun(workplace, until, ann, here):
    """A job that was sent to a worker which only says that it is there; the house has closed since."""
    async with workplace.visit() as house:
        bus = await workplace.bus()
        apprentice = await workplace.hand("idle")
        await apprentice.announce()
        await ready(house, until)
        jobs = await ask(house, ann, here, 2)
        await until(all_in(house, jobs, "sent"))
    return bus, jobs


@pytest.mark.asyncio
async def test_what_the_broker_lost_is_published_again_at_the_start(workplace, until, ann, here):
    bus, jobs = await _sent_but_not_begun(workplace, until, ann, here)
    await bus.js.purge_stream(subjects.WORK)
    apprentice, _ = await workplace.worker("second")
    house = await workplace.house()
    await until(all_in(house, jobs, "finished"))
    assert sorted(apprentice.begun) == sorted(jobs)


@pytest.mark.asyncio
async def test_what_the_broker_has_is_not_doubled_at_the_start(workplace, until, ann, here):
    bus, jobs = await _sent_but_not_begun(workplace, until, ann, here)
    house = await workplace.house()
    await house.dispatcher.republish()
    assert (await bus.js.stream_info(subjects.WORK)).state.messages == 2
    assert await states(house, jobs) == ["sent", "sent"]


@pytest.mark.asyncio
async def test_a_broker_that_lost_its_store_gets_everything_again(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=16)
    apprentice.go.clear()
    await ready(house, until)
    jobs = await ask(house, ann, here, 3)
    await until(lambda: len(apprentice.begun) == 2)
    apprentice.full = True  # else it might take once more what begins again, and stand still with it
    broker = workplace.broker
    os.kill(broker.pid, signal.SIGKILL)
    (broker.folder / "store").rename(broker.folder / "lost")
    await until(lambda: broker.restarts == 1)
    await workplace.worker("fresh")
    await until(all_in(house, jobs[:2], "finished"), 20)
    apprentice.go.set()
    await until(all_in(house, jobs, "finished"), 20)


@pytest.mark.asyncio
async def test_a_job_whose_worker_died_goes_on_elsewhere_and_ends_once(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, task = await workplace.worker("first")
    apprentice.go.clear()
    await ready(house, until)
    (job,) = await ask(house, ann, here)
    await until(all_in(house, [job], "running"))
    first = await house.store.record(job)
    await apprentice.vanish(task)
    await workplace.worker("second")
    await until(all_in(house, [job], "finished"))
    record = await house.store.record(job)
    assert record.worker == "second"
    assert record.epoch > first.epoch
    assert record.attempt == 1
    assert record.charged == pytest.approx(record.cost / 2)


@pytest.mark.asyncio
async def test_a_job_that_nobody_holds_any_more_is_queued_again(workplace, until, ann, here):
    house = await workplace.house()
    apprentice = await workplace.hand("liar")
    await apprentice.announce()
    await ready(house, until)
    (job,) = await ask(house, ann, here)
    await until(all_in(house, [job], "sent"))
    delivered = await apprentice.bus.pull(["default"], timeout=2)
    await delivered.ack()
    await apprentice.say(Started(job=job, epoch=5, worker="liar"))
    await until(all_in(house, [job], "running"))
    await workplace.worker("honest")
    await until(all_in(house, [job], "finished"), 20)
    record = await house.store.record(job)
    assert (record.attempt, record.worker) == (2, "honest")


@pytest.mark.asyncio
async def test_a_worker_that_always_gives_up_is_tried_three_times_and_costs_nothing(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.way = lambda job, epoch: Failed(
        job=job.id, epoch=epoch, reason="The device is gone.", blame="worker", retry=True
    )
    await ready(house, until)
    (job,) = await ask(house, ann, here)
    await until(all_in(house, [job], "failed"))
    record = await house.store.record(job)
    assert (record.reason, record.blame, record.charged) == ("The device is gone.", "worker", 0.0)
    assert apprentice.begun == [job] * 3


@pytest.mark.asyncio
async def test_what_waited_too_long_fails_and_costs_nothing(workplace, until, ann, here):
    workplace.settings = load(data=workplace.settings.data, max_age=60)
    now = [1_000_000.0]
    house = await workplace.house(clock=lambda: now[0])
    (job,) = await ask(house, ann, here)
    now[0] += 59
    await house.patrol.round()
    assert (await house.studio.view(job)).state == "queued"
    now[0] += 2
    await house.patrol.round()
    view = await house.studio.view(job)
    assert (view.state, view.cost) == ("failed", 0.0)
    assert "waited too long" in view.reason


@pytest.mark.asyncio
async def test_what_ran_and_was_not_done_in_time_did_not_wait(workplace, until, ann, here):
    house, _, job = await _running(workplace, until, ann, here)
    house.patrol._clock = lambda: time.time() + workplace.settings.max_age + 1
    await house.patrol.round()
    view = await house.studio.view(job)
    assert (view.state, view.reason) == ("failed", "It was not done in time; nothing was charged.")


@pytest.mark.asyncio
async def test_what_waited_while_its_model_changed_is_made_with_the_weights_of_now(workplace, until, ann, here):
    house = await workplace.house()
    apprentice = await workplace.hand("hand")
    apprentice.rows = 0
    await apprentice.announce()
    await ready(house, until)
    (job,) = await ask(house, ann, here)
    assert (await house.studio.view(job)).recipe.revision == "1"
    apprentice.revision, apprentice.rows = "2", 32
    again = await apprentice.handed()
    assert (again.id, again.task.revision) == (job, "2")


@pytest.mark.asyncio
async def test_cancelling_in_every_state(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker(rows=8)
    apprentice.go.clear()
    await ready(house, until)
    runs, waits = await ask(house, ann, here, 2)
    await until(all_in(house, [runs], "running"))
    assert "nothing was charged" in await house.studio.cancel(waits, ann)
    assert await states(house, [waits]) == ["cancelled"]
    assert (await house.studio.cancel(runs, ann)).startswith("Cancelling")
    await until(all_in(house, [runs], "cancelled"))
    assert await house.studio.cancel(runs, ann) == "Cancelled."
    record = await house.store.record(runs)
    assert record.charged == pytest.approx(record.cost / 4)
    assert not house.board.runs


@pytest.mark.asyncio
async def test_cancelling_without_a_worker_is_done_at_once(workplace, until, ann, here):
    _, jobs = await _sent_but_not_begun(workplace, until, ann, here)
    await asyncio.sleep(1.2)  # the worker's presence lapses
    house = await workplace.house()
    assert "no worker" in await house.studio.cancel(jobs[0], ann)
    assert await states(house, jobs[:1]) == ["cancelled"]
    assert (await house.store.record(jobs[0])).charged == 0.0


@pytest.mark.asyncio
async def test_while_reports_wait_nobody_is_taken_for_lost(workplace, until, ann, here):
    house, apprentice, job = await _running(workplace, until, ann, here)
    run, now = house.board.runs[job], time.time()
    assert await house.bus.revoke(job, run.record.epoch)
    house.patrol._orphaned[job] = now - 60.0
    house.board.behind = now + 60.0
    await house.patrol._look(run)
    assert (await house.store.record(job)).attempt == 1, "its worker may be done, and we have not heard it yet"
    house.patrol._orphaned[job] = now - 60.0
    house.board.behind = now - 1.0
    await house.patrol._look(run)
    assert (await house.store.record(job)).attempt == 2
    apprentice.go.set()
    await until(all_in(house, [job], "finished"))


@pytest.mark.asyncio
async def test_a_requeue_that_is_noticed_late_takes_nothing_from_the_next_worker(workplace, until, ann, here):
    house, _, job = await _running(workplace, until, ann, here)
    record = await house.store.record(job)
    line = Entry(job, time.time(), "running", "queued", record.attempt, 0, operating.AGAIN)
    for epoch in (0, record.epoch - 1):
        await house.noticing._notice(replace(line, epoch=epoch))
        assert (await house.bus.holder(job)).epoch == record.epoch
    await house.noticing._notice(replace(line, epoch=record.epoch))
    assert await house.bus.holder(job) is None


@pytest.mark.asyncio
async def test_streams_that_could_not_be_made_at_the_reconnection_are_made_later(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await ready(house, until)
    for stream in (subjects.RESULTS, subjects.WORK):
        await house.bus.js.delete_stream(stream)
    await house.dispatcher.lost()
    (job,) = await ask(house, ann, here)
    await until(all_in(house, [job], "finished"))


@pytest.mark.asyncio
async def test_a_cancel_that_no_worker_answers_is_settled_by_the_patrol(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, task = await workplace.worker()
    apprentice.go.clear()
    await ready(house, until)
    (job,) = await ask(house, ann, here)
    await until(all_in(house, [job], "running"))
    await apprentice.vanish(task)
    assert (await house.studio.cancel(job, ann)).startswith("Cancelling")
    await until(all_in(house, [job], "cancelled"))


@pytest.mark.asyncio
async def test_what_was_done_while_the_bot_was_away_is_not_sent_again(workplace, until, ann, here):
    hand = await workplace.hand("hand")
    async with workplace.visit() as house:
        await hand.announce()
        await until(lambda: house.studio.workers())
        (ticket,) = await house.studio.imagine("a lamp --count 1", ann, here)
        async with asyncio.timeout(10):
            while (delivered := await hand.bus.pull(["default"], timeout=0.5)) is None:
                await hand.announce()
    claim = await hand.bus.claim(ticket.job, "hand")
    await hand.say(Started(job=ticket.job, epoch=claim.epoch, worker="hand"))
    await hand.work(delivered.value, claim.epoch)
    await delivered.ack()
    before = (await hand.bus.js.stream_info(subjects.WORK)).state.last_seq
    house = await workplace.house()
    await until(all_in(house, [ticket.job], "finished"))
    await house.dispatcher.round()
    assert (await hand.bus.js.stream_info(subjects.WORK)).state.last_seq == before
