"""Pauses, weights and paces: between two steps in the engine, and over the broker. Other jobs lose nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.batching.engine import Engine, JobFailure, StepDone
from engine.contract import ControlMessage, JobFinished, JobStarted, PictureReady
from engine.worker import run_control
from engine.worker.engine_thread import EngineThread
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog
from shared.clock import Clock
from shared.worker_harness import (
    JOB,
    LEASE,
    OTHER_JOB,
    SlowFamily,
    WorkerHarness,
    hash_local_pictures,
    make_job,
    wait_until,
    wait_until_midway,
)

Make = Callable[..., Any]
STEPS = 60  # at 20 ms each: more than a second


def run_steps(engine: Engine, steps: int) -> dict[str, int]:
    """Runs steps of the engine; returns the image-steps of each job."""
    steps_by_job: dict[str, int] = {}
    for _ in range(steps):
        for event in engine.step():
            assert not isinstance(event, JobFailure), event
            if isinstance(event, StepDone):
                steps_by_job[event.job] = steps_by_job.get(event.job, 0) + 1
    return steps_by_job


def test_a_paused_job_takes_no_steps_and_resumes_bit_for_bit(
    affine: Any, recipe: Make, job: Make, finish: Make
) -> None:
    one = job(recipe("a", steps=20, count=2, bucket=4))
    other = job(recipe("b", steps=30, bucket=4), user="bob")
    reference = Engine({"affine": affine})
    engine = Engine({"affine": affine})
    reference.add(one)
    expected = finish(reference)
    for each in (one, other):
        engine.add(each)
    run_steps(engine, 5)
    engine.pause(one.id)
    before = engine.take_snapshots(one.id, 1)
    assert run_steps(engine, 10) == {other.id: 10}
    assert engine.take_snapshots(one.id, 1) == before
    assert before[0].next_step > 0
    assert engine.free_rows == 30
    engine.resume(one.id)
    latents = finish(engine)
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


def test_an_engine_with_only_paused_jobs_is_idle_until_one_resumes(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    one = job(recipe(steps=9))
    engine.add(one)
    engine.pause(one.id)
    engine.pause("unknown")
    assert engine.is_idle
    assert engine.step() == []
    engine.resume(one.id)
    assert not engine.is_idle
    engine.pause(one.id)
    assert engine.cancel(one.id) == 0
    assert engine.is_idle
    engine.add(one)  # the same id, no longer paused
    assert run_steps(engine, 9) == {one.id: 9}


def test_a_weight_divides_the_rows_of_one_user_only(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine}, rows=8)
    light_job, heavy_job = (job(recipe(steps=1000, count=4)) for _ in range(2))
    other_job = job(recipe(steps=1000, count=4), user="bob")
    for each in (light_job, heavy_job, other_job):
        engine.add(each)
    run_steps(engine, 20)
    engine.set_job_weight(heavy_job.id, 3.0)
    steps_by_job = run_steps(engine, 100)
    assert steps_by_job[heavy_job.id] / steps_by_job[light_job.id] == pytest.approx(3.0, rel=0.1)
    assert steps_by_job[other_job.id] == pytest.approx(
        steps_by_job[heavy_job.id] + steps_by_job[light_job.id], rel=0.05
    )
    with pytest.raises(ValueError, match="at most 1000"):
        engine.set_job_weight(heavy_job.id, 0.0)


def test_the_cost_of_a_row_is_the_models_times_the_area(affine: Any, recipe: Make, job: Make) -> None:
    priced_engine = Engine({"affine": affine}, row_ms_by_model={"affine": 1.5})
    plain_engine = Engine({"affine": affine})
    for engine, price in ((priced_engine, 6.0), (plain_engine, 4.0)):
        one = job(recipe(width=64, height=64))
        engine.add(one)
        assert [image.row_ms for image in engine._images[one.id]] == [price]


def test_users_of_large_and_small_pictures_get_equal_device_time(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine}, row_ms_by_model={"affine": 2.0})
    small = job(recipe(steps=1000))
    large = job(recipe(steps=1000, width=64, height=64), user="bob")
    for each in (small, large):
        engine.add(each)
    steps_by_job = run_steps(engine, 500)
    assert steps_by_job[small.id] / steps_by_job[large.id] == pytest.approx(4.0, rel=0.1)


def test_a_pinned_batch_shape_is_filled_despite_the_batch_limit(
    affine: Any, recipe: Make, job: Make, finish: Make
) -> None:
    """Without guidance a pinned batch has half the rows; with guidance more than the worker's batch limit."""
    engine = Engine({"affine": affine}, rows=2)
    engine.add(job(recipe(bucket=8, count=4, steps=10, guidance_start=0.5)))
    finish(engine)
    assert affine.shapes == [4] * 5 + [8] * 5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_a_job_in_a_whole_pipeline_can_pause_and_resume(tmp_path: Path, recipe: Make, job: Make) -> None:
    save_small_pipeline("sd", tmp_path / "sd")
    model = models.load_folder(str(tmp_path / "sd"), "sd")
    engine = Engine({"sd": model})
    try:
        one = job(recipe(model="sd", sampler="heun", steps=3, width=64, height=64, guidance=3.0))
        engine.add(one)
        engine.pause(one.id)  # its thread still encodes the prompt
        step_until_idle(engine)
        assert engine._images[one.id][0].k == 0
        engine.resume(one.id)
        assert not engine.is_idle
        while not engine.is_idle:
            assert not any(isinstance(event, JobFailure) for event in engine.step())
        assert one.id not in engine._images
    finally:
        engine.close()


def step_until_idle(engine: Engine) -> None:
    end = time.monotonic() + 30
    while not engine.is_idle:
        assert engine.step() == []
        assert time.monotonic() < end


def test_a_paced_job_steps_when_it_is_due_and_leaves_its_rows_to_others(
    affine: Any, recipe: Make, job: Make, finish: Make
) -> None:
    slow = job(recipe("a", steps=20, count=2, bucket=4))
    other = job(recipe("b", steps=200, bucket=4), user="bob")
    reference = Engine({"affine": affine})
    clock = Clock(100.0)
    reference.add(slow)
    expected = finish(reference)
    engine = Engine({"affine": affine}, clock=clock)
    engine.add(slow)
    engine.set_job_pace(slow.id, 3.0)
    assert run_steps(engine, 3) == {slow.id: 2}, "one step of both images, then it waits"
    assert engine.is_idle
    assert engine.seconds_until_due == 3.0
    assert engine.free_rows == engine.rows
    engine.add(other)
    clock.now += 2.9
    assert run_steps(engine, 5) == {other.id: 5}
    clock.now += 0.2
    assert run_steps(engine, 5) == {slow.id: 2, other.id: 5}
    assert engine.seconds_until_due == pytest.approx(2.9), "a late step does not delay the next one"
    clock.now += 60.0
    assert run_steps(engine, 5)[slow.id] == 4, "it goes on at once, but does not catch up with the missed steps"
    engine.pause(slow.id)
    clock.now += 3.0
    assert slow.id not in run_steps(engine, 3), "a pause holds beyond the pace"
    engine.resume(slow.id)
    engine.cancel(other.id)
    engine.set_job_pace(slow.id, 0.0)
    latents = finish(engine)
    assert {key: torch.equal(value, expected[key]) for key, value in latents.items()} == dict.fromkeys(expected, True)
    assert engine.seconds_until_due is None


@pytest.mark.asyncio
async def test_the_engine_thread_wakes_for_a_paced_step(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    one = job(recipe(steps=1000))
    steps = list[int]()

    def count_steps(events: Any, now: float) -> None:
        steps.extend(event.step for event in events if isinstance(event, StepDone))

    thread = EngineThread(engine, Watchdog(), count_steps, lambda error: pytest.fail(repr(error)))
    thread.start()

    def add_slowly(engine: Engine) -> None:
        engine.add(one)
        engine.set_job_pace(one.id, 0.05)

    await thread.call(add_slowly)
    await wait_until(lambda: len(steps) >= 3)
    assert steps[:3] == [1, 2, 3]
    assert engine.seconds_until_due is not None
    await thread.stop()


@pytest.mark.asyncio
async def test_the_engine_thread_takes_no_steps_while_all_jobs_are_paused(
    affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine({"affine": affine})
    one = job(recipe(steps=1000))
    step_count = [0]
    step = engine.step

    def count_step() -> Any:
        step_count[0] += 1
        return step()

    monkeypatch.setattr(engine, "step", count_step)
    thread = EngineThread(engine, Watchdog(), lambda *_: None, lambda error: pytest.fail(repr(error)))
    thread.start()
    await thread.call(lambda engine: engine.add(one))
    await wait_until(lambda: step_count[0] > 3)
    await thread.call(lambda engine: engine.pause(one.id))
    before = step_count[0]
    await asyncio.sleep(0.2)
    assert step_count[0] == before
    await thread.call(lambda engine: engine.resume(one.id))
    await wait_until(lambda: step_count[0] > before)
    await thread.stop()


async def start_slow_worker(harness: WorkerHarness) -> tuple[Worker, asyncio.Task[None]]:
    original_families = harness.families
    harness.families = {"embedded": SlowFamily(harness.families["embedded"])}  # pyright: ignore
    try:
        return await harness.start_worker("one")
    finally:
        harness.families = original_families


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_paused_over_the_broker_keeps_its_claim_and_resumes(harness: WorkerHarness) -> None:
    job = make_job(steps=STEPS)
    worker, _ = await start_slow_worker(harness)
    await harness.bot.dispatch(job)
    run = await wait_until_midway(worker)
    await harness.bot.client.publish("steer." + JOB, b"\x93garbage")
    await harness.bot.send_control(ControlMessage(job=OTHER_JOB, action="pause"))  # no worker runs this job
    await harness.bot.send_control(ControlMessage(job=JOB, action="weigh", weight=0.5))
    await harness.bot.send_control(ControlMessage(job=JOB, action="pause"))
    await wait_until(lambda: run.pause_timer is not None and run.weight == 0.5 and worker.free_rows == 8)
    await worker.active_runs.thread.call(lambda _: None)
    await asyncio.sleep(0.1)
    k = run.steps_done[0]
    await asyncio.sleep(1.5 * LEASE)
    assert run.steps_done[0] == k < job.task.steps  # pyright: ignore[reportAttributeAccessIssue]
    holder = await harness.bot.get_holder(JOB)
    assert holder is not None
    assert (await harness.bot.get_snapshots(JOB))[0].next_step == k
    await harness.bot.send_control(ControlMessage(job=JOB, action="resume"))
    results = await harness.collect_results()
    assert [type(value) for value in results] == [JobStarted, PictureReady, JobFinished]
    assert results[1].sha256 == (await hash_local_pictures(harness, job))[0]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_paced_over_the_broker_leaves_its_rows_and_ends_when_the_pace_does(harness: WorkerHarness) -> None:
    worker, _ = await start_slow_worker(harness)
    await harness.bot.dispatch(make_job(steps=STEPS))
    run = await wait_until_midway(worker)
    await harness.bot.send_control(ControlMessage(job=JOB, action="pace", pace=60.0))
    await wait_until(lambda: run.pace == 60.0 and worker.free_rows == 8)
    await worker.active_runs.thread.call(lambda _: None)
    assert run.seconds_left >= run.evaluations_left * 60.0 > 0
    assert await harness.bot.get_holder(JOB) is not None
    await harness.bot.send_control(ControlMessage(job=JOB, action="pace", pace=0.0))
    assert isinstance((await harness.collect_results())[-1], JobFinished)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_pause_ends_after_its_limit(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_control.MAX_PAUSE_SECONDS == 15 * 60
    monkeypatch.setattr(run_control, "MAX_PAUSE_SECONDS", 0.5)
    worker, _ = await start_slow_worker(harness)
    await harness.bot.dispatch(make_job(steps=STEPS))
    run = await wait_until_midway(worker)
    await harness.bot.send_control(ControlMessage(job=JOB, action="pause"))
    await wait_until(lambda: run.pause_timer is not None)
    assert isinstance((await harness.collect_results())[-1], JobFinished)
    assert run.pause_timer is None


@pytest.mark.slow
@pytest.mark.asyncio
async def test_all_pauses_of_a_job_share_one_limit(harness: WorkerHarness) -> None:
    worker, _ = await start_slow_worker(harness)
    await harness.bot.dispatch(make_job(steps=1000))
    run = await wait_until_midway(worker)
    await harness.bot.send_control(ControlMessage(job=JOB, action="pause"))
    await wait_until(lambda: run.pause_timer is not None)
    first = run.pause_timer
    await harness.bot.send_control(ControlMessage(job=JOB, action="pause"))
    await harness.bot.send_control(ControlMessage(job=JOB, action="weigh", weight=0.5))
    await wait_until(lambda: run.weight == 0.5)
    assert run.pause_timer is first
    await harness.bot.send_control(ControlMessage(job=JOB, action="resume"))
    await wait_until(lambda: run.pause_timer is None)
    assert 0 < run.paused_seconds < 30
    run.paused_seconds = run_control.MAX_PAUSE_SECONDS - 0.5
    await harness.bot.send_control(ControlMessage(job=JOB, action="pause"))
    await wait_until(lambda: run.pause_timer is not None)
    await wait_until(lambda: run.pause_timer is None, 10)
    await harness.bot.send_control(ControlMessage(job=JOB, action="pause"))
    await harness.bot.send_control(ControlMessage(job=JOB, action="weigh", weight=0.25))
    await wait_until(lambda: run.weight == 0.25)
    assert run.pause_timer is None
    await harness.bot.cancel(JOB)


@pytest.mark.slow
@pytest.mark.parametrize("harness", [30.0], indirect=True)  # long enough that no lease lapses if the machine stalls
@pytest.mark.asyncio
async def test_a_paused_job_that_moves_to_another_worker_runs_there(harness: WorkerHarness) -> None:
    job = make_job(steps=STEPS)
    first, task = await start_slow_worker(harness)
    await harness.bot.dispatch(job)
    run = await wait_until_midway(first)
    await harness.bot.send_control(ControlMessage(job=JOB, action="pause"))
    await wait_until(lambda: run.pause_timer is not None)
    first.drain()
    await task
    await harness.start_worker("two")
    results = await harness.collect_results()
    start_messages = [value for value in results if isinstance(value, JobStarted)]
    assert [start.worker for start in start_messages] == ["one", "two"]
    assert start_messages[1].step >= 3
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == await hash_local_pictures(
        harness, job
    )
