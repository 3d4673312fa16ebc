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
)  # fmt: skip
from engine.models.family import Family
from engine.output.upscaler import Upscaler
from engine.upscaling.super_resolver import SuperResolver
from engine.worker.heartbeats import Stuck
from engine.worker.watchdog import Watchdog
from shared.worker_harness import JOB, LEASE, LONG, OTHER, Shop, a_job, midway, uninterrupted, until


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_runs_from_dispatch_to_its_pictures_and_ladders(shop: Shop) -> None:
    job = a_job(ladder=True, count=2, guidance=3.0, bucket=4)
    await shop.worker("one.local")
    await shop.bot.dispatch(job)
    results = await shop.results()
    assert isinstance(results[0], JobStarted)
    assert isinstance(results[-1], JobFinished)
    assert (results[0].worker, results[0].step, results[-1].cost) == ("one.local", 0, 8.0)
    assert {value.epoch for value in results} == {results[0].epoch}
    pictures = {(value.kind, value.image): value for value in results if isinstance(value, PictureReady)}
    assert sorted(pictures) == [("image", 0), ("image", 1), ("ladder", 0), ("ladder", 1)]
    content = await shop.bot.get_blob(pictures["image", 1].sha256, pictures["image", 1].bytes)
    assert len(content) == pictures["image", 1].bytes
    assert Image.open(BytesIO(content)).size == (64, 64)
    ladder = decode(await shop.bot.get_blob(pictures["ladder", 0].sha256, 10_000_000), Ladder)
    assert [rung.step for rung in ladder.rungs] == [1, 2, 3, 4]
    assert [pictures["image", image].sha256 for image in (0, 1)] == await uninterrupted(shop, job)


@pytest.mark.asyncio
async def test_a_finished_job_leaves_no_message_claim_or_snapshot(shop: Shop) -> None:
    worker, _ = await shop.worker()
    await shop.bot.dispatch(a_job())
    await shop.results()
    await until(lambda: len(worker.active_runs) == 0)
    await asyncio.sleep(0.5)
    assert await shop.left("work") == 0
    assert await shop.bot.get_holder(JOB) is None
    assert await shop.bot.get_snapshots(JOB) == []


@pytest.mark.asyncio
async def test_a_worker_announces_its_free_rows(shop: Shop) -> None:
    worker, task = await shop.worker()
    await until(lambda: "one" in shop.bot.workers)
    assert shop.bot.workers["one"].free == 8
    await shop.bot.dispatch(a_job(steps=LONG, guidance=3.0, bucket=None))
    await until(lambda: shop.bot.workers["one"].free == 6)
    await shop.bot.cancel(JOB)
    await until(lambda: shop.bot.workers["one"].free == 8)
    worker.drain()
    await task
    await until(lambda: shop.bot.workers == {}, LEASE / 2)


@pytest.mark.asyncio
async def test_a_full_worker_takes_only_jobs_that_no_other_worker_waits_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = await shop.worker()
    pull, waits = worker._bus.pull_job, list[bool]()

    async def record_wait(*arguments: Any, wait: bool = True) -> Any:
        if worker.free_rows == 0:
            waits.append(wait)
        return await pull(*arguments, wait=wait)

    monkeypatch.setattr(worker._bus, "pull_job", record_wait)
    await shop.bot.dispatch(a_job(steps=1000, count=4, guidance=3.0, bucket=8))
    await until(lambda: len(waits) >= 3)
    assert not any(waits[1:]), "a full worker pulls only waiting jobs and never registers for the next"
    await shop.bot.dispatch(a_job(OTHER, steps=LONG))
    await until(lambda: OTHER in [run.job.id for run in worker.active_runs])


@pytest.mark.slow
@pytest.mark.asyncio
async def test_previews_are_rendered_only_for_watched_jobs(shop: Shop) -> None:
    await shop.worker()
    frames: list[Any] = []

    async def collect_frames() -> None:
        async for frame in shop.bot.watch_frames():
            frames.append(frame)

    collecting = asyncio.create_task(collect_frames())
    await asyncio.sleep(0.1)
    await shop.bot.dispatch(a_job(steps=30))
    await shop.results()
    assert frames == []
    await shop.bot.request_previews(OTHER)
    await shop.bot.dispatch(a_job(OTHER, steps=60))
    epoch = (await shop.results(OTHER))[0].epoch
    collecting.cancel()
    assert frames
    assert {(frame.job, frame.image, frame.of, frame.epoch) for frame in frames} == {(OTHER, 0, 60, epoch)}
    assert [frame.step for frame in frames] == sorted({frame.step for frame in frames})
    assert frames[0].seconds_left > 0
    assert Image.open(BytesIO(frames[-1].picture)).format == "JPEG"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_running_job_is_cancelled_and_charged_for_its_steps(shop: Shop) -> None:
    worker, _ = await shop.worker()
    await shop.bot.dispatch(a_job(steps=LONG))
    await midway(worker)
    await shop.bot.cancel(JOB)
    end = (await shop.results())[-1]
    assert isinstance(end, JobCancelled)
    assert 3 <= end.steps < LONG
    assert end.cost == pytest.approx(8.0 * end.steps / LONG)
    await shop.bot.dispatch(a_job(OTHER))
    assert isinstance((await shop.results(OTHER))[-1], JobFinished)
    assert await shop.left("work") == 0


@pytest.mark.asyncio
async def test_a_job_cancelled_in_the_queue_runs_no_step(shop: Shop) -> None:
    await shop.bot.dispatch(a_job())
    await shop.bot.cancel(JOB)
    await shop.worker()
    results = await shop.results()
    assert [(type(value), value.steps, value.cost) for value in results] == [(JobCancelled, 0, 0.0)]


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "blame", "retry"),
    [({"model": "unknown"}, "worker", True), ({"width": 72}, "member", False), ({"revision": "older"}, "worker", True)],
)
async def test_an_impossible_job_fails_with_a_sentence(
    shop: Shop, changes: dict[str, Any], blame: str, retry: bool
) -> None:
    await shop.worker()
    await shop.bot.dispatch(a_job(**changes))
    end = (await shop.results())[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry) == (blame, retry)
    assert end.reason.endswith(".")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_upscale_without_a_super_resolver_uses_lanczos(shop: Shop) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    await shop.worker()
    source_sha = await shop.bot.put_blob(source.getvalue())
    await shop.bot.dispatch(build_upscale(JOB, source_sha))
    results = await shop.results()
    assert [type(value) for value in results] == [JobStarted, PictureReady, JobFinished]
    assert (results[1].width, results[1].height, results[1].kind, results[1].method) == (160, 96, "image", "lanczos")
    large = Image.open(BytesIO(await shop.bot.get_blob(results[1].sha256, 1_000_000)))
    assert (large.size, large.convert("RGB").getpixel((80, 48))) == ((160, 96), (255, 0, 0))
    await shop.bot.dispatch(build_upscale(OTHER, "f" * 64))
    end = (await shop.results(OTHER))[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry) == ("us", False)


def build_upscale(job: str, source: str) -> Job:
    share = BillingKey("standard", "guild", "ann")
    return Job(id=job, task=UpscaleTask(source=source, method="gan"), share=share, cost=1.0, deadline=2e9)


@pytest.mark.asyncio
async def test_an_upscale_uses_the_super_resolver(shop: Shop, weights: Callable[..., Path]) -> None:
    source = BytesIO()
    Image.new("RGB", (40, 24), "red").save(source, "PNG")
    resolver = await asyncio.to_thread(lambda: SuperResolver(weights()))
    await shop.worker(upscaler=Upscaler(resolver))
    await shop.bot.dispatch(build_upscale(JOB, await shop.bot.put_blob(source.getvalue())))
    result = (await shop.results())[1]
    assert (result.width, result.height, result.kind, result.method) == (160, 96, "image", "gan")
    large = Image.open(BytesIO(await shop.bot.get_blob(result.sha256, 1_000_000)))
    assert "Postprocess upscaler: tiny4" in large.info["parameters"]


@pytest.mark.asyncio
async def test_a_cancelled_upscale_stops_at_the_next_tile(
    shop: Shop, weights: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = await asyncio.to_thread(lambda: SuperResolver(weights()))
    gate, tiles, original = threading.Event(), list[Any](), resolver._run_network
    monkeypatch.setattr(resolver, "_run_network", lambda tile: (tiles.append(tile), gate.wait(60), original(tile))[2])
    source, pulse = BytesIO(), Watchdog()
    Image.new("RGB", (600, 600), "red").save(source, "PNG")
    await shop.worker(pulse=pulse, upscaler=Upscaler(resolver))
    await shop.bot.dispatch(build_upscale(JOB, await shop.bot.put_blob(source.getvalue())))
    while not tiles:
        await asyncio.sleep(0.02)
    await shop.bot.cancel(JOB)
    assert isinstance((await shop.results())[-1], JobCancelled)
    gate.set()
    while "the upscaler" in pulse._current_phases:
        await asyncio.sleep(0.02)
    assert len(tiles) == 1


@pytest.mark.asyncio
async def test_an_unreadable_message_becomes_a_dead_letter_and_stops_no_job(shop: Shop) -> None:
    await shop.bot.js.publish(f"work.default.{OTHER}.1", b"\x93garbage")
    await shop.bot.dispatch(a_job())
    await shop.worker()
    assert isinstance((await shop.results())[-1], JobFinished)
    assert await shop.left("dead") == 1
    assert await shop.left("work") == 0


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_drained_worker_hands_its_job_over_at_the_same_step(shop: Shop) -> None:
    job = a_job(steps=await asyncio.to_thread(shop.steps, 3.0))
    first, task = await shop.worker("one")
    await shop.bot.dispatch(job)
    await midway(first)
    first.drain()
    await task
    snapshots = await shop.bot.get_snapshots(JOB)
    assert snapshots[0].k >= 3
    assert await shop.bot.get_holder(JOB) is None
    await shop.worker("two")
    results = await shop.results()
    starts = [value for value in results if isinstance(value, JobStarted)]
    assert [(start.worker, start.step) for start in starts] == [("one", 0), ("two", snapshots[0].k)]
    assert starts[1].epoch > starts[0].epoch
    returned = JobHandedBack(job=JOB, epoch=starts[0].epoch)
    assert results.index(starts[0]) < results.index(returned) < results.index(starts[1])
    assert sum(isinstance(value, JobFinished) for value in results) == 1
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == await uninterrupted(shop, job)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_worker_that_lost_its_claim_publishes_nothing(shop: Shop) -> None:
    worker, _ = await shop.worker()
    await shop.bot.dispatch(a_job(steps=LONG))
    run = await midway(worker)
    delivered = next(iter(run.handles.values()))
    await shop.bot.release_claim(run.claim)
    heir = await shop.bot.claim_job(JOB, "heir")
    assert heir is not None
    await until(lambda: len(worker.active_runs) == 0)
    for _ in range(8):
        await asyncio.sleep(LEASE * 0.25)
        await shop.bot.renew_claim(heir)
        await delivered.nats_msg.in_progress()
    source = shop.bot.consume_results()
    assert isinstance((await anext(source)).value, JobStarted)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(source), 1.0)
    assert await shop.left("work") == 1


@pytest.mark.asyncio
async def test_a_claim_lost_after_the_result_leaves_job_and_snapshots_to_the_heir(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = await shop.worker()
    say, heirs = worker._result_publisher.publish, []

    async def say_and_sleep(result: Any) -> None:
        await say(result)
        if isinstance(result, JobFinished):  # as if the process stopped here for longer than a lease
            await shop.bot.release_claim(next(iter(worker.active_runs)).claim)
            heirs.append(await shop.bot.claim_job(JOB, "heir"))
            await shop.bot.put_snapshot(replace(newer, epoch=heirs[0].epoch))

    newer = Snapshot(job=JOB, image=0, epoch=0, k=1, shape=(1, 1, 1), x=b"", h=b"")
    monkeypatch.setattr(worker._result_publisher, "publish", say_and_sleep)
    await shop.bot.dispatch(a_job())
    await until(lambda: heirs and len(worker.active_runs) == 0)
    await asyncio.sleep(0.5)
    assert await shop.left("work") == 1
    assert await shop.bot.get_snapshots(JOB) == [replace(newer, epoch=heirs[0].epoch)]
    assert await shop.bot.renew_claim(heirs[0])


class GatedFamily:
    """The embedded model with a network that waits for an event."""

    def __init__(self, family: Family) -> None:
        self._family, self.let_go = family, threading.Event()
        self.let_go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, *arguments: Any) -> Any:
        self.let_go.wait(30)
        return self._family.denoise(*arguments)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_lost_claim_stops_no_heartbeat_of_other_jobs_during_a_long_step(shop: Shop) -> None:
    slow = GatedFamily(shop.loaded["embedded"])
    shop.loaded = {"embedded": slow}  # pyright: ignore[reportAttributeAccessIssue]
    worker, _ = await shop.worker()
    for each in (JOB, OTHER):
        await shop.bot.dispatch(a_job(each, steps=LONG))
    await until(lambda: sum(min(run.steps_done.values()) > 2 for run in worker.active_runs) == 2)
    slow.let_go.clear()
    try:
        lost = worker.active_runs.get(JOB)
        assert lost is not None
        await shop.bot.release_claim(lost.claim)
        await asyncio.sleep(2.5 * LEASE)
        assert await shop.bot.claim_job(OTHER, "thief") is None
        assert lost not in worker.active_runs
    finally:
        slow.let_go.set()


@pytest.mark.asyncio
async def test_a_newer_epochs_snapshot_stops_the_older_run(shop: Shop) -> None:
    worker, _ = await shop.worker()
    await shop.bot.dispatch(a_job(steps=LONG))
    run = await midway(worker)
    newer = Snapshot(job=JOB, image=0, epoch=run.claim.epoch + 1, k=1, shape=(1, 1, 1), x=b"", h=b"")
    await shop.bot.put_snapshot(newer)
    await until(lambda: run not in worker.active_runs)
    assert await shop.bot.get_snapshots(JOB) == [newer]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_broker_restart_loses_nothing(shop: Shop) -> None:
    worker, _ = await shop.worker()
    job = a_job(steps=await asyncio.to_thread(shop.steps, 3.0))
    await shop.bot.dispatch(job)
    await midway(worker)
    pid = shop.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    results = await shop.results()
    assert [type(value) for value in results] == [JobStarted, PictureReady, JobFinished]
    assert results[1].sha256 == (await uninterrupted(shop, job))[0]
    assert shop.broker.restarts == 1


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("shop", [30.0], indirect=True)
async def test_a_cancel_during_an_outage_is_found_afterwards(shop: Shop) -> None:
    worker, _ = await shop.worker()
    await shop.bot.dispatch(a_job(steps=1000))
    run = await midway(worker)
    worker._bus.client.options["reconnect_time_wait"] = 2.0  # it reconnects long after the bot
    pid = shop.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: shop.broker.restarts == 1 and shop.bot.is_connected)
    await shop.bot.cancel(JOB)
    assert not worker._bus.is_connected
    await until(lambda: run not in worker.active_runs)
    assert isinstance((await shop.results())[-1], JobCancelled)


@pytest.mark.asyncio
async def test_a_stuck_worker_ends(shop: Shop) -> None:
    now = [1000.0]
    pulse = Watchdog(clock=lambda: now[0])
    _, task = await shop.worker(pulse=pulse)
    pulse.start_phase("the lane", "decode")
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
async def test_a_crashed_engine_ends_its_worker_and_the_next_one_finishes_the_job(shop: Shop) -> None:
    usual, shop.loaded = shop.loaded, {"embedded": FailingFamily(shop.loaded["embedded"])}  # pyright: ignore
    _, task = await shop.worker("one")
    await shop.bot.dispatch(a_job())
    with pytest.raises(Stuck, match="a kernel failed"):
        await asyncio.wait_for(task, 30)
    shop.loaded = usual
    await shop.worker("two")
    results = await shop.results()
    assert [value.worker for value in results if isinstance(value, JobStarted)] == ["one", "two"]
    assert isinstance(results[-1], JobFinished)


async def start_worker(shop: Shop, data: Path, name: str, calibration: Path) -> asyncio.subprocess.Process:
    """Starts a worker process and waits until it is ready."""
    await asyncio.to_thread(shutil.copy, calibration, data)
    environment = {**os.environ, "DARKROOM_NATS_TOKEN": shop.broker.token, "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "engine", "serve", "--nats", shop.broker.url, "--name", name, "--data", str(data),
        env=environment,
    )  # fmt: skip
    await until(lambda: name in shop.bot.workers or process.returncode is not None, 120)
    assert process.returncode is None
    return process


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("shop", [BusLimits().lease], indirect=True)
async def test_the_job_of_a_killed_worker_resumes_from_its_snapshot(
    shop: Shop, tmp_path: Path, calibration: Path
) -> None:
    job = a_job(steps=await asyncio.to_thread(shop.steps, 6.0))
    expected = await uninterrupted(shop, job)
    process = await start_worker(shop, tmp_path, "first", calibration)
    await shop.bot.dispatch(job)
    assert (await shop.started()).worker == "first"
    async with asyncio.timeout(60):
        while not (snapshots := await shop.bot.get_snapshots(JOB)):
            await asyncio.sleep(0.05)
    process.kill()
    await process.wait()
    await shop.worker("second")
    results = await shop.results()
    starts = [value for value in results if isinstance(value, JobStarted)]
    assert [start.worker for start in starts] == ["second"]
    assert starts[0].step >= snapshots[0].k > 0
    assert sum(isinstance(value, JobFinished) for value in results) == 1
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == expected


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("shop", [BusLimits().lease], indirect=True)
async def test_results_of_a_worker_that_slept_through_its_lease_carry_an_old_epoch(
    shop: Shop, tmp_path: Path, calibration: Path
) -> None:
    job = a_job(steps=await asyncio.to_thread(shop.steps, 3.0))
    expected = await uninterrupted(shop, job)
    process = await start_worker(shop, tmp_path, "sleeper", calibration)
    await shop.bot.dispatch(job)
    assert (await shop.started()).worker == "sleeper"
    process.send_signal(signal.SIGSTOP)
    await shop.worker("other")
    results = await shop.results()
    process.send_signal(signal.SIGCONT)
    assert {value.epoch for value in results} == {results[0].epoch}
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == expected
    # A sleeper that stopped within a step wakes past that step's deadline and then ends itself.
    await until(lambda: "sleeper" in shop.bot.workers or process.returncode is not None)
    assert process.returncode in (None, EXIT_STUCK)
    source = shop.bot.consume_results()
    while True:  # messages of the sleeper before its next heartbeat carry its old epoch
        try:
            late = (await asyncio.wait_for(anext(source), 5.0)).value
        except TimeoutError:
            break
        assert late.epoch < results[0].epoch
    assert await shop.bot.get_snapshots(JOB) == []
    if process.returncode is None:
        process.kill()
        await process.wait()


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("shop", [BusLimits().lease], indirect=True)
async def test_a_worker_process_hands_its_job_back_on_sigterm(shop: Shop, tmp_path: Path, calibration: Path) -> None:
    process = await start_worker(shop, tmp_path, "first", calibration)
    vectors = await shop.bot.embed(["a cat", "a kitten", "income tax law"], timeout=60)
    assert [len(vector) for vector in vectors] == [384] * 3
    assert sum(x * x for x in vectors[0]) == pytest.approx(1.0, abs=1e-5)
    assert dot(vectors[0], vectors[1]) > 0.5 > dot(vectors[0], vectors[2])
    await shop.bot.dispatch(a_job(steps=LONG))
    await shop.started()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    assert await shop.bot.get_holder(JOB) is None
    again = await shop.bot.pull_job(["default"], timeout=LEASE / 2)
    assert again is not None
    assert again.value.id == JOB


def dot(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))
