"""Settling: what workers report is believed only as far as it fits, stored before it is acknowledged, and contained."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from bot.feed import Developing, Readying, Settled
from bot.images.pixels import saved, size
from bot.queue import settle
from engine.bus import subjects
from engine.job import Cancelled, Failed, Finished, Frame, Ladder, Loading, Picture, Started, encode

JPEG = b"\xff\xd8\xff\xe0"
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def settled(house, until):
    """Until every report was answered for."""

    async def empty():
        info = await house.settle._bus.js.stream_info(subjects.RESULTS)
        return info.state.messages == 0

    await until(empty, 15)


@pytest.fixture
def open_job(workplace, until, ann, here):
    """A house, a worker under the test's own hand, and one job that it holds at epoch 10."""

    async def make(text="a lamp --count 1"):
        house = await workplace.house()
        apprentice = await workplace.hand("hand")
        await apprentice.announce()
        await until(lambda: house.studio.workers())
        (ticket,) = await house.studio.imagine(text, ann, here)
        job = await apprentice.handed()
        await apprentice.say(Started(job=ticket.job, epoch=10, worker="hand"))
        await settled(house, until)
        return house, apprentice, job

    return make


def finished(job, epoch=10):
    return Finished(job=job.id, epoch=epoch, cost=1.0, seconds=1.0, ms_per_step=1.0)


@pytest.mark.asyncio
async def test_stale_doubled_and_late_reports_change_nothing(open_job, until):
    house, apprentice, job = await open_job()
    await apprentice.say(Failed(job=job.id, epoch=9, reason="stale", blame="worker"))
    await apprentice.say(Cancelled(job=job.id, epoch=9, steps=0, cost=0.0))
    await apprentice.say(Started(job=job.id, epoch=9, worker="stale"))
    await apprentice.picture(job, 10, 0)
    await apprentice.ladder(job, 10, 0)
    for _ in range(2):
        await apprentice.say(finished(job))
    await apprentice.say(Failed(job=job.id, epoch=11, reason="late", blame="member"))
    await settled(house, until)
    view = await house.studio.view(job.id)
    assert (view.state, view.reason, len(view.pictures), view.ladders) == ("finished", "", 1, (0,))
    assert (await house.store.record(job.id)).worker == "hand"


@pytest.mark.asyncio
async def test_reports_about_unknown_jobs_are_answered_and_forgotten(open_job, until):
    house, apprentice, job = await open_job()
    await apprentice.say(Started(job=UNKNOWN, epoch=1, worker="hand"))
    await apprentice.say(Finished(job=UNKNOWN, epoch=1, cost=1.0, seconds=1.0, ms_per_step=1.0))
    await settled(house, until)
    assert house.settle._bus.dead.count == {}
    assert (await house.studio.view(job.id)).state == "running"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "fault", ["size", "nine times", "bytes", "missing", "not a png", "torn", "garbage", "ladder", "empty ladder"]
)
async def test_a_bad_picture_is_laid_aside_and_the_job_done_again(open_job, until, fault):
    house, apprentice, job = await open_job()
    whole = saved(Image.effect_noise((job.task.width, job.task.height), 50), "PNG")
    contents = {
        "not a png": b"GIF89a" * 10, "torn": whole[: len(whole) // 2], "garbage": whole[:33] + b"garbage" * 9,
        "ladder": b"no ladder", "empty ladder": encode(Ladder(job=job.id, image=0, of=40, shape=(1, 1), rungs=())),
    }  # fmt: skip
    content = contents.get(fault, b"")
    sha = await apprentice.bus.put_blob(content) if content else None
    if "ladder" in fault:
        await apprentice.picture(job, 10, 0)
    if fault == "size":
        await apprentice.keep(job, 10, 0, "image", b"\x89PNG", 72)
    elif fault == "nine times":
        await apprentice.keep(job, 10, 0, "image", b"\x89PNG", 9 * 64)
    else:
        picture = Picture(
            job=job.id, image=0, epoch=10, kind="ladder" if "ladder" in fault else "image", sha256=sha or "0" * 64,
            bytes=len(content) or 5, width=64, height=64,
        )  # fmt: skip
        await apprentice.say(picture)
    await apprentice.say(finished(job))
    await until(lambda: house.settle._bus.dead.count["results"] == 1)

    async def queued_again():
        return (await house.store.record(job.id)).attempt == 2

    await until(queued_again)
    again = await apprentice.handed()
    assert (again.id, again.attempt) == (job.id, 2)
    await apprentice.say(Started(job=job.id, epoch=20, worker="hand"))
    await apprentice.picture(job, 20, 0)
    await apprentice.ladder(job, 20, 0)
    await apprentice.say(finished(job, 20))
    await settled(house, until)
    assert (await house.studio.view(job.id)).state == "finished"


@pytest.mark.asyncio
async def test_a_full_disk_is_waited_out_and_costs_no_try(open_job, until, monkeypatch):
    monkeypatch.setattr(settle, "OUTAGE_PAUSE", 0.05)
    house, apprentice, job = await open_job()
    tries = []
    take = house.settle.take

    async def counted(value, **more):
        tries.append(type(value))
        await take(value, **more)

    monkeypatch.setattr(house.settle, "take", counted)
    blocked = Path(house.studio._gallery._pictures._folder) / "sha256"
    blocked.write_bytes(b"in the way of every picture")
    await apprentice.picture(job, 10, 0)
    await until(lambda: tries)
    await apprentice.ladder(job, 10, 0)
    await apprentice.say(finished(job))
    await until(lambda: min(tries.count(Picture), tries.count(Finished)) > 2 * settle.TRIES)
    blocked.unlink()
    await settled(house, until)
    record = await house.store.record(job.id)
    assert (record.state, record.attempt, house.settle._bus.dead.count) == ("finished", 1, {})
    assert not house.settle._outages


@pytest.mark.asyncio
@pytest.mark.parametrize(("blame", "share"), [("member", 1.0), ("model", 0.0), ("worker", 0.0), ("us", 0.0)])
async def test_only_a_members_fault_is_charged(open_job, until, blame, share):
    house, apprentice, job = await open_job()
    async with house.feed.subscribe(job.id) as moments:
        await apprentice.say(Failed(job=job.id, epoch=10, reason="It broke.", blame=blame))
        async with asyncio.timeout(10):
            while not isinstance(moment := await anext(moments), Settled):
                continue
    assert moment == Settled(job.id, "failed", "It broke.")
    record = await house.store.record(job.id)
    assert (record.blame, record.charged) == (blame, pytest.approx(share * record.cost))


@pytest.mark.asyncio
async def test_a_worker_that_begins_what_is_over_is_told_to_stop(open_job, until):
    house, apprentice, job = await open_job()
    await apprentice.say(Failed(job=job.id, epoch=10, reason="It broke.", blame="model"))
    await settled(house, until)
    assert not await apprentice.bus.is_cancelled(job.id)
    await apprentice.say(Started(job=job.id, epoch=30, worker="hand"))
    await settled(house, until)
    assert await apprentice.bus.is_cancelled(job.id)
    assert (await house.studio.view(job.id)).state == "failed"


@pytest.mark.asyncio
async def test_frames_are_shown_once_they_fit_and_only_then(open_job, until):
    house, apprentice, job = await open_job("a lamp --count 2 --steps 40")

    def frame(**more):
        values = {"job": job.id, "image": 0, "epoch": 10, "step": 20, "of": 40, "picture": JPEG, "seconds_left": 90.0}
        return Frame(**(values | more))

    async with house.feed.subscribe(job.id) as moments:
        assert isinstance(await anext(moments), Developing)
        for bad in (
            frame(epoch=9), frame(job=UNKNOWN), frame(image=2), frame(of=50), frame(picture=b"<svg>"),
            frame(step=41, of=41),
        ):  # fmt: skip
            await apprentice.bus.publish_frame(bad)
        await apprentice.bus.publish_frame(frame())
        async with asyncio.timeout(5):
            assert await anext(moments) == Developing(job.id, 20, 40, 90.0, {0: JPEG})
    await apprentice.announce()  # it said so once, and on a busy machine that may be a lease ago
    await until(house.studio.workers)
    view = await house.studio.view(job.id)
    assert (view.step, view.of) == (20, 40)
    assert view.eta == pytest.approx(90.0, abs=30.0)  # less what passed since, on a busy machine too


@pytest.mark.asyncio
async def test_how_far_a_model_is_is_told_where_it_fits_watched_or_not(open_job):
    house, apprentice, job = await open_job("a lamp --count 2 --steps 40")

    def loading(**more):
        return Loading(**({"job": job.id, "epoch": 10, "model": "embedded", "done": 0.4} | more))

    async with house.feed.subscribe(job.id, previews=False) as moments:
        assert isinstance(await anext(moments), Developing)
        for bad in (loading(epoch=9), loading(job=UNKNOWN), loading(model="another")):
            await apprentice.bus.publish_loading(bad)
        await apprentice.bus.publish_loading(loading())
        async with asyncio.timeout(5):
            assert await anext(moments) == Readying(job.id, "embedded", 0.4)


@pytest.mark.asyncio
async def test_whoever_watches_is_wanted_at_the_worker(open_job):
    house, apprentice, job = await open_job()
    wants = apprentice.bus.wants()
    reading = asyncio.ensure_future(anext(wants))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5), house.feed.subscribe(job.id):
        assert await reading == job.id
    await wants.aclose()


@pytest.mark.asyncio
async def test_what_was_reported_while_the_house_was_closed_is_settled_at_the_next_start(workplace, until, ann, here):
    async with workplace.visit() as house:
        apprentice = await workplace.hand("hand")
        await apprentice.announce()
        await until(lambda: house.studio.workers())
        (ticket,) = await house.studio.imagine("a lamp --count 1", ann, here)
        job = await apprentice.handed()
    await apprentice.say(Started(job=job.id, epoch=10, worker="hand"))
    await apprentice.picture(job, 10, 0)
    await apprentice.ladder(job, 10, 0)
    await apprentice.say(finished(job))
    house = await workplace.house()
    await settled(house, until)
    assert (await house.studio.view(ticket.job)).state == "finished"


def test_only_a_png_has_a_size():
    assert size(b"\x89PNG\r\n\x1a\n") is None
    assert size(b"x" * 64) is None


@pytest.mark.asyncio
async def test_what_was_deleted_while_it_ran_is_cancelled_without_an_error(open_job, until, ann, caplog):
    house, apprentice, job = await open_job()
    await house.desk.moderation.delete(job.id, ann)
    await apprentice.picture(job, 10, 0)
    await apprentice.say(finished(job))
    await settled(house, until)
    record = await house.store.record(job.id)
    assert (record.state, record.attempt) == ("cancelled", 1)
    assert record.charged == pytest.approx(min(record.cost, 1.0))
    assert not [line for line in caplog.records if line.levelname == "ERROR"]


@asynccontextmanager
async def line(house, job, length):
    """While this lasts nothing is taken in; it ends once so many reports of a job stand in line."""
    for _ in range(settle.AT_ONCE):
        await house.settle._slots.acquire()
    try:
        yield
        async with asyncio.timeout(15):
            while len(house.settle._waiting.get(job.id, ())) < length:
                await asyncio.sleep(0.02)
    finally:
        for _ in range(settle.AT_ONCE):
            house.settle._slots.release()


@pytest.mark.asyncio
async def test_what_stands_in_line_of_one_job_is_stored_with_its_end_as_one_transaction(open_job, until, monkeypatch):
    house, apprentice, job = await open_job("a lamp --count 4")
    taken, take_in = [], house.store.take_in
    monkeypatch.setattr(house.store, "take_in", lambda *told: (taken.append(told), take_in(*told))[1])
    told = []
    monkeypatch.setattr(house.settle._closing, "ended", told.append)
    async with line(house, job, 9):
        for image in range(4):
            await apprentice.picture(job, 10, image)
            await apprentice.ladder(job, 10, image)
        await apprentice.say(finished(job))
    await settled(house, until)
    view = await house.studio.view(job.id)
    assert (view.state, len(view.pictures), view.ladders) == ("finished", 4, (0, 1, 2, 3))
    assert len(await house.studio.all_shown(job.id)) == 4
    assert (len(told), len(taken), len(taken[0][2])) == (1, 1, 8)


@pytest.mark.asyncio
async def test_a_bad_picture_in_line_takes_no_other_with_it(open_job, until):
    house, apprentice, job = await open_job("a lamp --count 2")
    async with line(house, job, 5):
        for image in range(2):
            await apprentice.ladder(job, 10, image)
        await apprentice.picture(job, 10, 0)
        await apprentice.keep(job, 10, 1, "image", b"GIF89a" * 10, 64)
        await apprentice.say(finished(job))
    await until(lambda: house.settle._bus.dead.count["results"] == 1)

    async def queued_again():
        return (await house.store.record(job.id)).attempt == 2

    await until(queued_again)
    view = await house.studio.view(job.id)
    assert ([shot.index for shot in view.pictures], view.ladders) == ([0], (0, 1))


@pytest.mark.asyncio
async def test_a_picture_larger_than_announced_is_not_fetched(open_job, until):
    house, apprentice, job = await open_job()
    sha = await apprentice.bus.put_blob(saved(Image.effect_noise((64, 64), 50), "PNG"))
    told = Picture(job=job.id, image=0, epoch=10, kind="image", sha256=sha, bytes=99, width=64, height=64)
    await apprentice.say(told)
    await until(lambda: house.settle._bus.dead.count["results"] == 1)
    assert (await house.studio.view(job.id)).pictures == ()
