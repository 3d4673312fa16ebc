"""Results from workers: only results that fit a job count. The bot stores them before it acknowledges them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image

from bot.domain.events import JobEnded, JobProgress, ModelLoading
from bot.jobs import results
from bot.pictures.image_codec import encode_image, png_size
from engine.bus import subjects
from engine.contract import (
    Frame,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobModelLoading,
    JobStarted,
    Keyframe,
    Ladder,
    PictureReady,
    encode,
)

JPEG = b"\xff\xd8\xff\xe0"
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def wait_for_results(app, wait_until):
    """Waits until every report is handled."""

    async def is_empty():
        info = await app.queue.result_consumer.bus.js.stream_info(subjects.RESULTS)
        return info.state.messages == 0

    await wait_until(is_empty, 15)


@pytest.fixture
def take_job(harness, wait_until, ann, destination):
    """A running bot, a worker that the test drives, and one job that it has taken and not yet reported."""

    async def make(text="a lamp --count 1"):
        app = await harness.open_app()
        worker = await harness.make_worker("hand")
        await worker.announce()
        await wait_until(lambda: app.services.live_workers())
        await app.services.jobs.imagine(text, ann, destination)
        return app, worker, await worker.take_job()

    return make


@pytest.fixture
def open_job(take_job, wait_until):
    """The same, and the job has started at epoch 10."""

    async def make(text="a lamp --count 1"):
        app, worker, job = await take_job(text)
        await worker.publish_result(JobStarted(job=job.id, epoch=10, worker="hand"))
        await wait_for_results(app, wait_until)
        return app, worker, job

    return make


def finished_report(job, epoch=10):
    return JobFinished(job=job.id, epoch=epoch, cost=1.0, seconds=1.0, ms_per_step=1.0)


@pytest.mark.asyncio
async def test_no_step_goes_back_where_a_preview_overtakes_the_start(take_job):
    app, worker, job = await take_job()
    async with app.feed.subscribe() as events, asyncio.timeout(15):
        progress = (event async for event in events if isinstance(event, JobProgress))
        await worker.publish_frame(job, 10, 0, 3)
        first_steps = [(await anext(progress)).step]
        await worker.publish_result(JobStarted(job=job.id, epoch=10, worker="hand"))
        assert [*first_steps, (await anext(progress)).step] == [3, 3]


@pytest.mark.asyncio
async def test_stale_repeated_and_late_reports_change_nothing(open_job, wait_until):
    app, worker, job = await open_job()
    await worker.publish_result(JobFailed(job=job.id, epoch=9, reason="stale", blame="worker"))
    await worker.publish_result(JobCancelled(job=job.id, epoch=9, steps=0, cost=0.0))
    await worker.publish_result(JobStarted(job=job.id, epoch=9, worker="stale"))
    await worker.publish_picture(job, 10, 0)
    await worker.publish_ladder(job, 10, 0)
    for _ in range(2):
        await worker.publish_result(finished_report(job))
    await worker.publish_result(JobFailed(job=job.id, epoch=11, reason="late", blame="member"))
    await wait_for_results(app, wait_until)
    view = await app.services.job_views.load_view(job.id)
    assert (view.state, view.reason, len(view.pictures), view.ladder_images) == ("finished", "", 1, (0,))
    assert (await app.store.get_job(job.id)).worker == "hand"


@pytest.mark.asyncio
async def test_reports_about_unknown_jobs_are_acknowledged_and_dropped(open_job, wait_until):
    app, worker, job = await open_job()
    await worker.publish_result(JobStarted(job=UNKNOWN, epoch=1, worker="hand"))
    await worker.publish_result(JobFinished(job=UNKNOWN, epoch=1, cost=1.0, seconds=1.0, ms_per_step=1.0))
    await wait_for_results(app, wait_until)
    assert app.queue.result_consumer.bus.dead_letters.count == {}
    assert (await app.services.job_views.load_view(job.id)).state == "running"


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize(
    "fault", ["size", "nine times", "bytes", "missing", "not a png", "torn", "garbage", "ladder", "empty ladder"]
)
async def test_a_bad_picture_becomes_a_dead_letter_and_the_job_runs_again(open_job, wait_until, fault):
    app, worker, job = await open_job()
    valid = encode_image(Image.effect_noise((job.task.width, job.task.height), 50), "PNG")
    contents = {
        "not a png": b"GIF89a" * 10,
        "torn": valid[: len(valid) // 2],
        "garbage": valid[:33] + b"garbage" * 9,
        "ladder": b"no ladder",
        "empty ladder": encode(Ladder(job=job.id, image=0, total_steps=40, shape=(1, 1), keyframes=())),
    }
    content = contents.get(fault, b"")
    sha = await worker.bus.put_blob(content) if content else None
    if "ladder" in fault:
        await worker.publish_picture(job, 10, 0)
    if fault == "size":
        await worker.publish_blob(job, 10, 0, "image", b"\x89PNG", 72)
    elif fault == "nine times":
        await worker.publish_blob(job, 10, 0, "image", b"\x89PNG", 9 * 64)
    else:
        picture = PictureReady(
            job=job.id,
            image=0,
            epoch=10,
            kind="ladder" if "ladder" in fault else "image",
            sha256=sha or "0" * 64,
            bytes=len(content) or 5,
            width=64,
            height=64,
        )
        await worker.publish_result(picture)
    await worker.publish_result(finished_report(job))
    await wait_until(lambda: app.queue.result_consumer.bus.dead_letters.count["results"] == 1)

    async def is_queued_again():
        return (await app.store.get_job(job.id)).attempt == 2

    await wait_until(is_queued_again)
    second_pull = await worker.take_job()
    assert (second_pull.id, second_pull.attempt) == (job.id, 2)
    await worker.publish_result(JobStarted(job=job.id, epoch=20, worker="hand"))
    await worker.publish_picture(job, 20, 0)
    await worker.publish_ladder(job, 20, 0)
    await worker.publish_result(finished_report(job, 20))
    await wait_for_results(app, wait_until)
    assert (await app.services.job_views.load_view(job.id)).state == "finished"


@pytest.mark.asyncio
async def test_the_bot_decodes_no_picture_of_a_worker_before_it_is_stored(open_job, wait_until, monkeypatch):
    app, worker, job = await open_job()
    await worker.publish_result(JobStarted(job=job.id, epoch=10, worker="hand"))
    content = encode_image(Image.effect_noise((job.task.width, job.task.height), 50), "PNG")
    opened = []
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args))
    await worker.publish_blob(job, 10, 0, "image", content, job.task.width)
    await worker.publish_blob(job, 10, 0, "ladder", make_ladder(job.id), 64)
    await worker.publish_result(finished_report(job))
    await wait_for_results(app, wait_until)
    view = await app.services.job_views.load_view(job.id)
    assert (view.state, len(view.pictures), view.ladder_images) == ("finished", 1, (0,))
    assert opened == []


def make_ladder(job):
    thumbnail = encode_image(Image.new("RGB", (8, 8)), "JPEG")
    keyframes = (Keyframe(step=1, thumbnail=thumbnail), Keyframe(step=2, thumbnail=thumbnail))
    return encode(Ladder(job=job, image=0, total_steps=40, shape=(1, 1), keyframes=keyframes))


@pytest.mark.asyncio
async def test_a_full_disk_is_waited_out_without_counting_an_attempt(open_job, wait_until, monkeypatch):
    monkeypatch.setattr(results, "OUTAGE_PAUSE", 0.05)
    app, worker, job = await open_job()
    attempt_times = []
    take = app.queue.result_consumer.apply_result

    async def count_and_take(value, **options):
        attempt_times.append(type(value))
        await take(value, **options)

    monkeypatch.setattr(app.queue.result_consumer, "apply_result", count_and_take)
    blocked_folder = Path(app.picture_store._folder) / "sha256"
    blocked_folder.write_bytes(b"in the way of every picture")
    await worker.publish_picture(job, 10, 0)
    await wait_until(lambda: attempt_times)
    await worker.publish_ladder(job, 10, 0)
    await worker.publish_result(finished_report(job))
    await wait_until(
        lambda: min(attempt_times.count(PictureReady), attempt_times.count(JobFinished)) > 2 * results.MAX_TRIES
    )
    blocked_folder.unlink()
    await wait_for_results(app, wait_until)
    record = await app.store.get_job(job.id)
    assert (record.state, record.attempt, app.queue.result_consumer.bus.dead_letters.count) == ("finished", 1, {})
    assert not app.queue.result_consumer._delayed_pictures


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.parametrize(("blame", "charged_share"), [("member", 1.0), ("model", 0.0), ("worker", 0.0), ("us", 0.0)])
async def test_only_a_members_fault_is_charged(open_job, wait_until, blame, charged_share):
    app, worker, job = await open_job()
    async with app.feed.subscribe(job.id) as events:
        await worker.publish_result(JobFailed(job=job.id, epoch=10, reason="It broke.", blame=blame))
        async with asyncio.timeout(10):
            while not isinstance(event := await anext(events), JobEnded):
                continue
    assert event == JobEnded(job.id, "failed", "It broke.")
    record = await app.store.get_job(job.id)
    assert (record.blame, record.charged) == (blame, pytest.approx(charged_share * record.cost))


@pytest.mark.asyncio
async def test_a_worker_that_starts_an_ended_job_gets_a_cancellation(open_job, wait_until):
    app, worker, job = await open_job()
    await worker.publish_result(JobFailed(job=job.id, epoch=10, reason="It broke.", blame="model"))
    await wait_for_results(app, wait_until)
    assert not await worker.bus.is_cancelled(job.id)
    await worker.publish_result(JobStarted(job=job.id, epoch=30, worker="hand"))
    await wait_for_results(app, wait_until)
    assert await worker.bus.is_cancelled(job.id)
    assert (await app.services.job_views.load_view(job.id)).state == "failed"


@pytest.mark.asyncio
async def test_only_frames_that_fit_their_job_are_shown(open_job, wait_until):
    app, worker, job = await open_job("a lamp --count 2 --steps 40")

    def make_frame(**options):
        values = {
            "job": job.id,
            "image": 0,
            "epoch": 10,
            "step": 20,
            "total_steps": 40,
            "picture": JPEG,
            "seconds_left": 90.0,
        }
        return Frame(**(values | options))

    async with app.feed.subscribe(job.id) as events:
        assert isinstance(await anext(events), JobProgress)
        for invalid_frame in (
            make_frame(epoch=9),
            make_frame(job=UNKNOWN),
            make_frame(image=2),
            make_frame(total_steps=50),
            make_frame(picture=b"<svg>"),
            make_frame(step=41, total_steps=41),
        ):
            await worker.bus.publish_frame(invalid_frame)
        await worker.bus.publish_frame(make_frame())
        async with asyncio.timeout(5):
            assert await anext(events) == JobProgress(job.id, 20, 40, 90.0, {0: JPEG})
    await worker.announce()  # on a busy machine the first announcement may be older than a lease
    await wait_until(app.services.live_workers)
    view = await app.services.job_views.load_view(job.id)
    assert (view.step, view.total_steps) == (20, 40)
    assert view.eta == pytest.approx(90.0, abs=30.0)  # less the time since then, which is long on a busy machine


@pytest.mark.asyncio
async def test_only_loading_progress_that_fits_its_job_is_shown_watched_or_not(open_job):
    app, worker, job = await open_job("a lamp --count 2 --steps 40")

    def make_loading(**options):
        return JobModelLoading(**({"job": job.id, "epoch": 10, "model": "embedded", "loaded_share": 0.4} | options))

    async with app.feed.subscribe(job.id, with_previews=False) as events:
        assert isinstance(await anext(events), JobProgress)
        for invalid_frame in (make_loading(epoch=9), make_loading(job=UNKNOWN), make_loading(model="another")):
            await worker.bus.publish_loading(invalid_frame)
        await worker.bus.publish_loading(make_loading())
        async with asyncio.timeout(5):
            assert await anext(events) == ModelLoading(job.id, "embedded", 0.4)


@pytest.mark.asyncio
async def test_the_worker_learns_which_jobs_are_watched(open_job):
    app, worker, job = await open_job()
    preview_requests = worker.bus.watch_preview_requests()
    read_task = asyncio.ensure_future(anext(preview_requests))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5), app.feed.subscribe(job.id):
        assert await read_task == job.id
    await preview_requests.aclose()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_reports_from_while_the_bot_was_closed_are_handled_at_the_next_start(
    harness, wait_until, ann, destination
):
    async with harness.open_temporary_app() as app:
        worker = await harness.make_worker("hand")
        await worker.announce()
        await wait_until(lambda: app.services.live_workers())
        (accepted,) = await app.services.jobs.imagine("a lamp --count 1", ann, destination)
        job = await worker.take_job()
    await worker.publish_result(JobStarted(job=job.id, epoch=10, worker="hand"))
    await worker.publish_picture(job, 10, 0)
    await worker.publish_ladder(job, 10, 0)
    await worker.publish_result(finished_report(job))
    app = await harness.open_app()
    await wait_for_results(app, wait_until)
    assert (await app.services.job_views.load_view(accepted.job)).state == "finished"


def test_only_a_png_has_a_size():
    assert png_size(b"\x89PNG\r\n\x1a\n") is None
    assert png_size(b"x" * 64) is None


@pytest.mark.asyncio
async def test_a_job_deleted_while_it_runs_is_cancelled_without_an_error(open_job, wait_until, ann, caplog):
    app, worker, job = await open_job()
    await app.services.moderation.delete_pictures(job.id, ann)
    await worker.publish_picture(job, 10, 0)
    await worker.publish_result(finished_report(job))
    await wait_for_results(app, wait_until)
    record = await app.store.get_job(job.id)
    assert (record.state, record.attempt) == ("cancelled", 1)
    assert record.charged == pytest.approx(min(record.cost, 1.0))
    assert not [entry for entry in caplog.records if entry.levelname == "ERROR"]


@asynccontextmanager
async def hold_reports(app, job, length):
    """Handles no report until `length` reports of a job wait."""
    for _ in range(results.MAX_CONCURRENT):
        await app.queue.result_consumer._work_slots.acquire()
    try:
        yield
        async with asyncio.timeout(15):
            while len(app.queue.result_consumer._pending.get(job.id, ())) < length:
                await asyncio.sleep(0.02)
    finally:
        for _ in range(results.MAX_CONCURRENT):
            app.queue.result_consumer._work_slots.release()


@pytest.mark.asyncio
async def test_waiting_reports_of_one_job_are_stored_with_its_end_in_one_transaction(open_job, wait_until, monkeypatch):
    app, worker, job = await open_job("a lamp --count 4")
    calls = []
    take_in = app.store.record_pictures
    monkeypatch.setattr(app.store, "record_pictures", lambda *args: (calls.append(args), take_in(*args))[1])
    end_events = []
    monkeypatch.setattr(app.queue.result_consumer.completion, "on_end", end_events.append)
    async with hold_reports(app, job, 9):
        for image in range(4):
            await worker.publish_picture(job, 10, image)
            await worker.publish_ladder(job, 10, image)
        await worker.publish_result(finished_report(job))
    await wait_for_results(app, wait_until)
    view = await app.services.job_views.load_view(job.id)
    assert (view.state, len(view.pictures), view.ladder_images) == ("finished", 4, (0, 1, 2, 3))
    assert len(await app.services.gallery.read_all_for_members(job.id)) == 4
    assert (len(end_events), len(calls), len(calls[0][2])) == (1, 1, 8)


@pytest.mark.asyncio
@pytest.mark.parametrize("choice", [(), (0,), (1, 1), (0, 4)])
async def test_a_false_choice_of_candidates_ends_no_job(open_job, wait_until, choice):
    app, worker, job = await open_job("a lamp --count 2 --best")
    for image in range(2):
        await worker.publish_picture(job, 10, image)
        await worker.publish_ladder(job, 10, image)
    await worker.publish_result(replace(finished_report(job), chosen_candidates=choice))
    await wait_until(lambda: app.queue.result_consumer.bus.dead_letters.count["results"] == 1)
    record = await app.store.get_job(job.id)
    assert (record.state, record.task.needs_choice) == ("running", True)
    await worker.publish_result(replace(finished_report(job), chosen_candidates=(3, 1)))
    await wait_for_results(app, wait_until)
    record = await app.store.get_job(job.id)
    assert (record.state, record.task.chosen_candidates) == ("finished", (3, 1))


@pytest.mark.asyncio
async def test_a_bad_picture_among_waiting_reports_fails_no_other(open_job, wait_until):
    app, worker, job = await open_job("a lamp --count 2")
    async with hold_reports(app, job, 5):
        for image in range(2):
            await worker.publish_ladder(job, 10, image)
        await worker.publish_picture(job, 10, 0)
        await worker.publish_blob(job, 10, 1, "image", b"GIF89a" * 10, 64)
        await worker.publish_result(finished_report(job))
    await wait_until(lambda: app.queue.result_consumer.bus.dead_letters.count["results"] == 1)

    async def is_queued_again():
        return (await app.store.get_job(job.id)).attempt == 2

    await wait_until(is_queued_again)
    view = await app.services.job_views.load_view(job.id)
    assert ([picture.index for picture in view.pictures], view.ladder_images) == ([0], (0, 1))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_picture_larger_than_announced_is_not_fetched(open_job, wait_until):
    app, worker, job = await open_job()
    sha = await worker.bus.put_blob(encode_image(Image.effect_noise((64, 64), 50), "PNG"))
    report = PictureReady(job=job.id, image=0, epoch=10, kind="image", sha256=sha, bytes=99, width=64, height=64)
    await worker.publish_result(report)
    await wait_until(lambda: app.queue.result_consumer.bus.dead_letters.count["results"] == 1)
    assert (await app.services.job_views.load_view(job.id)).pictures == ()
