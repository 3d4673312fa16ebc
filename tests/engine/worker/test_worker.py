"""The worker with the real engine, model and broker: one result per job, even if a process dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from PIL import Image

from engine.__main__ import EXIT_STUCK
from engine.bus import BusLimits
from engine.contract import (
    BillingKey,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobHandedBack,
    JobStarted,
    Ladder,
    PictureReady,
    Snapshot,
    UpscaleTask,
    decode,
)
from engine.models.family import Family
from engine.output.upscaler import Upscaler
from engine.upscaling.super_resolver import SuperResolver
from engine.worker.worker_life import Stuck, Watchdog
from shared.worker_harness import (
    JOB,
    LEASE,
    LONG_STEPS,
    OTHER_JOB,
    WorkerHarness,
    hash_local_pictures,
    make_job,
    wait_until,
    wait_until_midway,
)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_runs_from_dispatch_to_its_pictures_and_ladders(harness: WorkerHarness) -> None:
    job = make_job(ladder=True, count=2, guidance=3.0, bucket=4)
    await harness.start_worker("one.local")
    await harness.bot.dispatch(job)
    results = await harness.collect_results()
    assert isinstance(results[0], JobStarted)
    assert isinstance(results[-1], JobFinished)
    assert (results[0].worker, results[0].step, results[-1].cost) == ("one.local", 0, 8.0)
    assert {value.epoch for value in results} == {results[0].epoch}
    pictures = {(value.kind, value.image): value for value in results if isinstance(value, PictureReady)}
    assert sorted(pictures) == [("image", 0), ("image", 1), ("ladder", 0), ("ladder", 1)]
    content = await harness.bot.get_blob(pictures["image", 1].sha256, pictures["image", 1].bytes)
    assert len(content) == pictures["image", 1].bytes
    assert Image.open(BytesIO(content)).size == (256, 256)  # by the large decoder
    ladder = decode(await harness.bot.get_blob(pictures["ladder", 0].sha256, 10_000_000), Ladder)
    assert [keyframe.step for keyframe in ladder.keyframes] == [1, 2, 3, 4]
    assert [pictures["image", image].sha256 for image in (0, 1)] == await hash_local_pictures(harness, job)


@pytest.mark.asyncio
async def test_a_finished_job_leaves_no_message_claim_or_snapshot(harness: WorkerHarness) -> None:
    worker, _ = await harness.start_worker()
    await harness.bot.dispatch(make_job())
    await harness.collect_results()
    await wait_until(lambda: len(worker.active_runs) == 0)
    await asyncio.sleep(0.5)
    assert await harness.count_messages("work") == 0
    assert await harness.bot.get_holder(JOB) is None
    assert await harness.bot.get_snapshots(JOB) == []


@pytest.mark.asyncio
async def test_a_worker_announces_its_free_rows(harness: WorkerHarness) -> None:
    worker, task = await harness.start_worker()
    await wait_until(lambda: "one" in harness.bot.workers)
    assert harness.bot.workers["one"].free == 8
    await harness.bot.dispatch(make_job(steps=LONG_STEPS, guidance=3.0, bucket=None))
    await wait_until(lambda: harness.bot.workers["one"].free == 6)
    await harness.bot.cancel(JOB)
    await wait_until(lambda: harness.bot.workers["one"].free == 8)
    worker.drain()
    await task
    await wait_until(lambda: harness.bot.workers == {}, LEASE / 2)


@pytest.mark.asyncio
async def test_a_full_worker_takes_only_jobs_that_no_other_worker_waits_for(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = await harness.start_worker()
    pull = worker._bus.pull_job
    wait_flags = list[bool]()

    async def record_wait(*arguments: Any, wait: bool = True) -> Any:
        if worker.free_rows == 0:
            wait_flags.append(wait)
        return await pull(*arguments, wait=wait)

    monkeypatch.setattr(worker._bus, "pull_job", record_wait)
    await harness.bot.dispatch(make_job(steps=1000, count=4, guidance=3.0, bucket=8))
    await wait_until(lambda: len(wait_flags) >= 3)
    assert not any(wait_flags[1:]), "a full worker pulls only waiting jobs and never registers for the next"
    await harness.bot.dispatch(make_job(OTHER_JOB, steps=LONG_STEPS))
    await wait_until(lambda: OTHER_JOB in [run.job.id for run in worker.active_runs])


@pytest.mark.slow
@pytest.mark.asyncio
async def test_previews_are_rendered_only_for_watched_jobs(harness: WorkerHarness) -> None:
    await harness.start_worker()
    frames: list[Any] = []

    async def collect_frames() -> None:
        async for frame in harness.bot.watch_frames():
            frames.append(frame)

    collect_task = asyncio.create_task(collect_frames())
    await asyncio.sleep(0.1)
    await harness.bot.dispatch(make_job(steps=30))
    await harness.collect_results()
    assert frames == []
    await harness.bot.request_previews(OTHER_JOB)
    await harness.bot.dispatch(make_job(OTHER_JOB, steps=60))
    epoch = (await harness.collect_results(OTHER_JOB))[0].epoch
    collect_task.cancel()
    assert frames
    assert {(frame.job, frame.image, frame.total_steps, frame.epoch) for frame in frames} == {(OTHER_JOB, 0, 60, epoch)}
    assert [frame.step for frame in frames] == sorted({frame.step for frame in frames})
    assert frames[0].seconds_left > 0
    assert Image.open(BytesIO(frames[-1].picture)).format == "JPEG"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_running_job_is_cancelled_and_charged_for_its_steps(harness: WorkerHarness) -> None:
    worker, _ = await harness.start_worker()
    await harness.bot.dispatch(make_job(steps=LONG_STEPS))
    await wait_until_midway(worker)
    await harness.bot.cancel(JOB)
    end = (await harness.collect_results())[-1]
    assert isinstance(end, JobCancelled)
    assert 3 <= end.steps < LONG_STEPS
    assert end.cost == pytest.approx(8.0 * end.steps / LONG_STEPS)
    await harness.bot.dispatch(make_job(OTHER_JOB))
    assert isinstance((await harness.collect_results(OTHER_JOB))[-1], JobFinished)
    assert await harness.count_messages("work") == 0


@pytest.mark.asyncio
async def test_a_job_cancelled_in_the_queue_runs_no_step(harness: WorkerHarness) -> None:
    await harness.bot.dispatch(make_job())
    await harness.bot.cancel(JOB)
    await harness.start_worker()
    results = await harness.collect_results()
    assert [(type(value), value.steps, value.cost) for value in results] == [(JobCancelled, 0, 0.0)]


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "blame", "retry"),
    [({"model": "unknown"}, "worker", True), ({"width": 72}, "member", False), ({"revision": "older"}, "worker", True)],
)
async def test_an_impossible_job_fails_with_a_sentence(
    harness: WorkerHarness, changes: dict[str, Any], blame: str, retry: bool
) -> None:
    await harness.start_worker()
    await harness.bot.dispatch(make_job(**changes))
    end = (await harness.collect_results())[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry) == (blame, retry)
    assert end.reason.endswith(".")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_upscale_without_a_super_resolver_uses_lanczos(harness: WorkerHarness) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    await harness.start_worker()
    source_sha = await harness.bot.put_blob(source.getvalue())
    await harness.bot.dispatch(build_upscale(JOB, source_sha))
    results = await harness.collect_results()
    assert [type(value) for value in results] == [JobStarted, PictureReady, JobFinished]
    assert (results[1].width, results[1].height, results[1].kind, results[1].method) == (160, 96, "image", "lanczos")
    large = Image.open(BytesIO(await harness.bot.get_blob(results[1].sha256, 1_000_000)))
    assert (large.size, large.convert("RGB").getpixel((80, 48))) == ((160, 96), (255, 0, 0))
    await harness.bot.dispatch(build_upscale(OTHER_JOB, "f" * 64))
    end = (await harness.collect_results(OTHER_JOB))[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry) == ("us", False)


def build_upscale(job: str, source: str) -> Job:
    share = BillingKey("standard", "guild", "ann")
    return Job(id=job, task=UpscaleTask(source=source, method="gan"), billing_key=share, cost=1.0, deadline=2e9)


@pytest.mark.asyncio
async def test_an_upscale_uses_the_super_resolver(harness: WorkerHarness, weights: Callable[..., Path]) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    resolver = await asyncio.to_thread(lambda: SuperResolver(weights()))
    await harness.start_worker(upscaler=Upscaler(resolver))
    await harness.bot.dispatch(build_upscale(JOB, await harness.bot.put_blob(source.getvalue())))
    result = (await harness.collect_results())[1]
    assert (result.width, result.height, result.kind, result.method) == (160, 96, "image", "gan")
    large = Image.open(BytesIO(await harness.bot.get_blob(result.sha256, 1_000_000)))
    assert "Postprocess upscaler: tiny4" in large.info["parameters"]


@pytest.mark.asyncio
async def test_a_cancelled_upscale_stops_at_the_next_tile(
    harness: WorkerHarness, weights: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = await asyncio.to_thread(lambda: SuperResolver(weights()))
    gate = threading.Event()
    tiles = list[Any]()
    original = resolver._run_network
    monkeypatch.setattr(resolver, "_run_network", lambda tile: (tiles.append(tile), gate.wait(60), original(tile))[2])
    source = BytesIO()
    watchdog = Watchdog()
    Image.new("RGB", (600, 600), "red").save(source, "PNG")
    await harness.start_worker(watchdog=watchdog, upscaler=Upscaler(resolver))
    await harness.bot.dispatch(build_upscale(JOB, await harness.bot.put_blob(source.getvalue())))
    while not tiles:
        await asyncio.sleep(0.02)
    await harness.bot.cancel(JOB)
    assert isinstance((await harness.collect_results())[-1], JobCancelled)
    gate.set()
    while "the upscaler" in watchdog._current_phases:
        await asyncio.sleep(0.02)
    assert len(tiles) == 1


@pytest.mark.asyncio
async def test_an_unreadable_message_becomes_a_dead_letter_and_stops_no_job(harness: WorkerHarness) -> None:
    await harness.bot.js.publish(f"work.default.{OTHER_JOB}.1", b"\x93garbage")
    await harness.bot.dispatch(make_job())
    await harness.start_worker()
    assert isinstance((await harness.collect_results())[-1], JobFinished)
    assert await harness.count_messages("dead") == 1
    assert await harness.count_messages("work") == 0


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_drained_worker_hands_its_job_over_at_the_same_step(harness: WorkerHarness) -> None:
    job = make_job(steps=await asyncio.to_thread(harness.count_steps, 3.0))
    first, task = await harness.start_worker("one")
    await harness.bot.dispatch(job)
    await wait_until_midway(first)
    first.drain()
    await task
    snapshots = await harness.bot.get_snapshots(JOB)
    assert snapshots[0].next_step >= 3
    assert await harness.bot.get_holder(JOB) is None
    await harness.start_worker("two")
    results = await harness.collect_results()
    start_messages = [value for value in results if isinstance(value, JobStarted)]
    assert [(start.worker, start.step) for start in start_messages] == [("one", 0), ("two", snapshots[0].next_step)]
    assert start_messages[1].epoch > start_messages[0].epoch
    handed_back = JobHandedBack(job=JOB, epoch=start_messages[0].epoch)
    assert results.index(start_messages[0]) < results.index(handed_back) < results.index(start_messages[1])
    assert sum(isinstance(value, JobFinished) for value in results) == 1
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == await hash_local_pictures(
        harness, job
    )


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_worker_that_lost_its_claim_publishes_nothing(harness: WorkerHarness) -> None:
    worker, _ = await harness.start_worker()
    await harness.bot.dispatch(make_job(steps=LONG_STEPS))
    run = await wait_until_midway(worker)
    delivered = next(iter(run.handles.values()))
    await harness.bot.release_claim(run.claim)
    new_claim = await harness.bot.claim_job(JOB, "heir")
    assert new_claim is not None
    await wait_until(lambda: len(worker.active_runs) == 0)
    for _ in range(8):
        await asyncio.sleep(LEASE * 0.25)
        await harness.bot.renew_claim(new_claim)
        await delivered.nats_msg.in_progress()
    source = harness.bot.consume_results()
    assert isinstance((await anext(source)).value, JobStarted)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(source), 1.0)
    assert await harness.count_messages("work") == 1


@pytest.mark.asyncio
async def test_a_claim_lost_after_the_result_leaves_job_and_snapshots_to_the_next_worker(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = await harness.start_worker()
    publish = worker._result_publisher.publish
    new_claims = []

    async def say_and_sleep(result: Any) -> None:
        await publish(result)
        if isinstance(result, JobFinished):  # as if the process paused here for longer than a lease
            await harness.bot.release_claim(next(iter(worker.active_runs)).claim)
            new_claims.append(await harness.bot.claim_job(JOB, "heir"))
            await harness.bot.put_snapshot(replace(snapshot, epoch=new_claims[0].epoch))

    snapshot = Snapshot(job=JOB, image=0, epoch=0, next_step=1, shape=(1, 1, 1), x=b"", history=b"")
    monkeypatch.setattr(worker._result_publisher, "publish", say_and_sleep)
    await harness.bot.dispatch(make_job())
    await wait_until(lambda: new_claims and len(worker.active_runs) == 0)
    await asyncio.sleep(0.5)
    assert await harness.count_messages("work") == 1
    assert await harness.bot.get_snapshots(JOB) == [replace(snapshot, epoch=new_claims[0].epoch)]
    assert await harness.bot.renew_claim(new_claims[0])


class GatedFamily:
    """The embedded model with a network that waits for an event."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self.let_go = threading.Event()
        self.let_go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, *arguments: Any) -> Any:
        self.let_go.wait(30)
        return self._family.denoise(*arguments)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_lost_claim_stops_no_heartbeat_of_other_jobs_during_a_long_step(harness: WorkerHarness) -> None:
    slow_family = GatedFamily(harness.families["embedded"])
    harness.families = {"embedded": slow_family}  # pyright: ignore[reportAttributeAccessIssue]
    worker, _ = await harness.start_worker()
    for each in (JOB, OTHER_JOB):
        await harness.bot.dispatch(make_job(each, steps=LONG_STEPS))
    await wait_until(lambda: sum(min(run.steps_done.values()) > 2 for run in worker.active_runs) == 2)
    slow_family.let_go.clear()
    try:
        lost_run = worker.active_runs.get(JOB)
        assert lost_run is not None
        await harness.bot.release_claim(lost_run.claim)
        await asyncio.sleep(2.5 * LEASE)
        assert await harness.bot.claim_job(OTHER_JOB, "thief") is None
        assert lost_run not in worker.active_runs
    finally:
        slow_family.let_go.set()


@pytest.mark.asyncio
async def test_a_newer_epochs_snapshot_stops_the_older_run(harness: WorkerHarness) -> None:
    worker, _ = await harness.start_worker()
    await harness.bot.dispatch(make_job(steps=LONG_STEPS))
    run = await wait_until_midway(worker)
    newer_snapshot = Snapshot(
        job=JOB, image=0, epoch=run.claim.epoch + 1, next_step=1, shape=(1, 1, 1), x=b"", history=b""
    )
    await harness.bot.put_snapshot(newer_snapshot)
    await wait_until(lambda: run not in worker.active_runs)
    assert await harness.bot.get_snapshots(JOB) == [newer_snapshot]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_broker_restart_loses_nothing(harness: WorkerHarness) -> None:
    worker, _ = await harness.start_worker()
    job = make_job(steps=await asyncio.to_thread(harness.count_steps, 3.0))
    await harness.bot.dispatch(job)
    await wait_until_midway(worker)
    pid = harness.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    results = await harness.collect_results()
    assert [type(value) for value in results] == [JobStarted, PictureReady, JobFinished]
    assert results[1].sha256 == (await hash_local_pictures(harness, job))[0]
    assert harness.broker.restarts == 1


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("harness", [30.0], indirect=True)
async def test_a_cancel_during_an_outage_is_found_afterwards(harness: WorkerHarness) -> None:
    worker, _ = await harness.start_worker()
    await harness.bot.dispatch(make_job(steps=1000))
    run = await wait_until_midway(worker)
    worker._bus.client.options["reconnect_time_wait"] = 2.0  # it reconnects long after the bot
    pid = harness.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: harness.broker.restarts == 1 and harness.bot.is_connected)
    await harness.bot.cancel(JOB)
    assert not worker._bus.is_connected
    await wait_until(lambda: run not in worker.active_runs)
    assert isinstance((await harness.collect_results())[-1], JobCancelled)


@pytest.mark.asyncio
async def test_a_stuck_worker_ends(harness: WorkerHarness) -> None:
    now = [1000.0]
    watchdog = Watchdog(clock=lambda: now[0])
    _, task = await harness.start_worker(watchdog=watchdog)
    watchdog.start_phase("the lane", "decode")
    await asyncio.sleep(0.1)
    now[0] += 309
    await asyncio.sleep(LEASE * 0.4)
    assert not task.done()
    now[0] += 2
    with pytest.raises(Stuck, match="the lane has been in one decode for 311 s"):
        await asyncio.wait_for(task, LEASE)


class FailingFamily:
    """The embedded model with a network that fails in an unforeseen way."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, *_: Any) -> Any:
        raise RuntimeError("a kernel failed")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_crashed_engine_ends_its_worker_and_the_next_one_finishes_the_job(harness: WorkerHarness) -> None:
    original_families = harness.families
    harness.families = {"embedded": FailingFamily(original_families["embedded"])}  # pyright: ignore
    _, task = await harness.start_worker("one")
    await harness.bot.dispatch(make_job())
    with pytest.raises(Stuck, match="a kernel failed"):
        await asyncio.wait_for(task, 30)
    harness.families = original_families
    await harness.start_worker("two")
    results = await harness.collect_results()
    assert [value.worker for value in results if isinstance(value, JobStarted)] == ["one", "two"]
    assert isinstance(results[-1], JobFinished)


async def start_worker(harness: WorkerHarness, data: Path, name: str, calibration: Path) -> asyncio.subprocess.Process:
    """Starts a worker process and waits until it is ready."""
    await asyncio.to_thread(shutil.copy, calibration, data)
    environment = {**os.environ, "DARKROOM_NATS_TOKEN": harness.broker.token, "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "engine",
        "serve",
        "--nats",
        harness.broker.url,
        "--name",
        name,
        "--data",
        str(data),
        env=environment,
    )
    await wait_until(lambda: name in harness.bot.workers or process.returncode is not None, 120)
    assert process.returncode is None
    return process


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("harness", [BusLimits().lease], indirect=True)
async def test_the_job_of_a_killed_worker_resumes_from_its_snapshot(
    harness: WorkerHarness, tmp_path: Path, calibration: Path
) -> None:
    job = make_job(steps=await asyncio.to_thread(harness.count_steps, 6.0))
    expected = await hash_local_pictures(harness, job)
    process = await start_worker(harness, tmp_path, "first", calibration)
    await harness.bot.dispatch(job)
    assert (await harness.wait_for_start()).worker == "first"
    async with asyncio.timeout(60):
        while not (snapshots := await harness.bot.get_snapshots(JOB)):
            await asyncio.sleep(0.05)
    process.kill()
    await process.wait()
    await harness.start_worker("second")
    results = await harness.collect_results()
    start_messages = [value for value in results if isinstance(value, JobStarted)]
    assert [start.worker for start in start_messages] == ["second"]
    assert start_messages[0].step >= snapshots[0].next_step > 0
    assert sum(isinstance(value, JobFinished) for value in results) == 1
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == expected


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("harness", [BusLimits().lease], indirect=True)
async def test_results_of_a_worker_that_slept_through_its_lease_carry_an_old_epoch(
    harness: WorkerHarness, tmp_path: Path, calibration: Path
) -> None:
    job = make_job(steps=await asyncio.to_thread(harness.count_steps, 3.0))
    expected = await hash_local_pictures(harness, job)
    process = await start_worker(harness, tmp_path, "sleeper", calibration)
    await harness.bot.dispatch(job)
    assert (await harness.wait_for_start()).worker == "sleeper"
    process.send_signal(signal.SIGSTOP)
    await harness.start_worker("other")
    results = await harness.collect_results()
    process.send_signal(signal.SIGCONT)
    assert {value.epoch for value in results} == {results[0].epoch}
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == expected
    # A sleeper that stopped within a step wakes past that step's deadline and then ends itself.
    await wait_until(lambda: "sleeper" in harness.bot.workers or process.returncode is not None)
    assert process.returncode in (None, EXIT_STUCK)
    source = harness.bot.consume_results()
    while True:  # messages of the sleeper before its next heartbeat carry its old epoch
        try:
            late_result = (await asyncio.wait_for(anext(source), 5.0)).value
        except TimeoutError:
            break
        assert late_result.epoch < results[0].epoch
    assert await harness.bot.get_snapshots(JOB) == []
    if process.returncode is None:
        process.kill()
        await process.wait()


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("harness", [BusLimits().lease], indirect=True)
async def test_a_worker_process_hands_its_job_back_on_sigterm(
    harness: WorkerHarness, tmp_path: Path, calibration: Path
) -> None:
    process = await start_worker(harness, tmp_path, "first", calibration)
    vectors = await harness.bot.embed(["a cat", "a kitten", "income tax law"], timeout=60)
    assert [len(vector) for vector in vectors] == [384] * 3
    assert sum(x * x for x in vectors[0]) == pytest.approx(1.0, abs=1e-5)
    assert dot_product(vectors[0], vectors[1]) > 0.5 > dot_product(vectors[0], vectors[2])
    await harness.bot.dispatch(make_job(steps=LONG_STEPS))
    await harness.wait_for_start()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert await harness.bot.get_holder(JOB) is None
    redelivery = await harness.bot.pull_job(["default"], timeout=LEASE / 2)
    assert redelivery is not None
    assert redelivery.value.id == JOB


def dot_product(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))
