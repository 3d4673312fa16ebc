"""Failures cost as little as possible: out of memory, NaN, one faulty job, a kill, a lost device.

Real networks: the embedded model for samplers by noise, and a small Stable Diffusion 3 for flow matching.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.resumption import decoded_psnr
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.__main__ import EXIT_STUCK
from engine.batching.engine import Engine, JobFailure, LatentsDone, StepDone
from engine.batching.fault_isolation import DeviceLost, reject_before_start
from engine.bus import BusLimits
from engine.contract import Job, JobFinished, JobRejected, JobStarted, PictureReady, Snapshot
from engine.contract import JobFailed as FailedJob
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.family import Conditioning, Family
from engine.sampling.samplers import FLOW_SCHEDULERS, TABLED
from engine.worker.engine_thread import EngineThread
from engine.worker.worker_life import Stuck, Watchdog
from shared.worker_harness import (
    JOB,
    OTHER_JOB,
    WorkerHarness,
    hash_local_pictures,
    make_job,
    wait_until,
    wait_until_midway,
)

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
LEAST_PSNR = 60.0  # dB of decoded float32 pictures: the minimum after a change of batch shape
# minimum seconds of a step, so that a job lasts beyond its first snapshot
STEP_SECONDS = 0.06
STEPS = 60
BROKEN = "mat1 and mat2 shapes cannot be multiplied"


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("small") / "sd3"
    save_small_pipeline("sd3", folder)
    return models.load_folder(str(folder), "sd3")


class FaultyFamily:
    """A family whose network first calls `before(x, texts)`, which may raise or return other texts."""

    def __init__(self, family: Any, before: Callable[[torch.Tensor, Conditioning], Conditioning | None]) -> None:
        self._family = family
        self._before = before
        self.shapes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, *loras: Any) -> torch.Tensor:
        conditioning = self._before(x, conditioning) or conditioning
        self.shapes.append(len(x))
        return self._family.denoise(x, t, conditioning, *loras)


@pytest.fixture
def picture(recipe: Make) -> Make:
    """Builds a recipe of the embedded model or of another family."""

    def make(text: str = "a red cat", family: Any = None, **fields: Any) -> Any:
        defaults: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "steps": 12}
        if family is not None:
            defaults |= {"model": family.name, "guidance_kind": family.guides}
        return recipe(text, **(defaults | fields))

    return make


def run_uninterrupted(family: Any, one: Job, finish: Make, **fields: Any) -> dict[tuple[str, int], torch.Tensor]:
    engine = Engine({family.name: family}, **fields)
    engine.add(one)
    return finish(engine)


def run_until_idle(engine: Engine) -> list[Any]:
    events = list[Any]()
    while not engine.is_idle:
        events += engine.step()
    return events


# --- memory


@pytest.mark.slow
def test_out_of_memory_retries_the_same_step_in_half_the_rows_bit_for_bit(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make
) -> None:
    jobs = [job(picture(text, steps=5), user=text) for text in ("a cat", "a dog", "a tree", "a house")]
    reference_engine = Engine({"embedded": embedded}, rows=4)
    snapshots = []
    refused_sizes = []

    def run_out_of_memory(x: torch.Tensor, _: Conditioning) -> None:
        snapshots.append([engine.take_snapshots(each.id, 1) for each in jobs])
        if len(x) > 4:
            refused_sizes.append(len(x))
            raise torch.OutOfMemoryError("the test's memory is full")

    engine = Engine({"embedded": FaultyFamily(embedded, run_out_of_memory)})  # pyright: ignore[reportArgumentType]
    for each in jobs:
        engine.add(each)
        reference_engine.add(each)
    first = engine.step()
    assert refused_sizes == [8]
    assert snapshots[0] == snapshots[1]
    assert [event.step for event in first if isinstance(event, StepDone)] == [1, 1]
    latents = finish(engine)
    expected = finish(reference_engine)
    assert refused_sizes == [8]
    assert latents.keys() == expected.keys()
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


# --- numbers that are not finite


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [8, None])
def test_a_nan_row_fails_its_job_and_changes_no_other_row(
    embedded: StableDiffusion, picture: Make, job: Make, bucket: int | None
) -> None:
    valid_jobs = [job(picture(text, steps=11, bucket=bucket), user=text) for text in ("a cat", "a dog")]
    other = job(picture("a spoilt picture", steps=11, bucket=bucket), user="bob")
    mark = embedded.encode_conditioning("a spoilt picture", other.task)[0]

    def corrupt_conditioning(_: torch.Tensor, texts: Conditioning) -> Conditioning:
        is_marked = (texts[0] == mark).flatten(1).all(dim=1).view(-1, 1, 1)
        return (torch.where(is_marked, float("nan"), texts[0]), *texts[1:])

    outcomes = list[Any]()
    for family in (embedded, FaultyFamily(embedded, corrupt_conditioning)):
        engine = Engine({"embedded": family})  # pyright: ignore[reportArgumentType]
        for each in (valid_jobs[0], other, valid_jobs[1]):
            engine.add(each)
        outcomes.append(run_until_idle(engine))
    events_without_fault, events_with_fault = outcomes
    assert [(event.job, event.blame) for event in events_with_fault if isinstance(event, JobFailure)] == [
        (other.id, "model")
    ]
    latents_by_job = {event.job: event.latents for event in events_with_fault if isinstance(event, LatentsDone)}
    assert latents_by_job.keys() == {each.id for each in valid_jobs}
    for event in events_without_fault:
        if isinstance(event, LatentsDone) and event.job != other.id and bucket:
            assert torch.equal(latents_by_job[event.job], event.latents)  # a pinned batch shape keeps every bit
        elif isinstance(event, LatentsDone) and event.job != other.id:
            torch.testing.assert_close(latents_by_job[event.job], event.latents, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rows_beside_a_nan_row_keep_their_bits_in_any_batch_shape(
    embedded: StableDiffusion, picture: Make, job: Make
) -> None:
    """Without a pinned shape this holds for ten steps; then the engine looks for NaN."""
    valid_job = job(picture("a cat"))
    failing_job = job(picture("a dog"), user="bob")
    other_valid_job = job(picture("a dog"), user="bob")
    snapshots = list[Any]()
    for other_job, is_failing in ((failing_job, True), (other_valid_job, False)):
        engine = Engine({"embedded": embedded})
        for each in (valid_job, other_job):
            engine.add(each)
        if is_failing:
            engine._images[other_job.id][0].x *= float("nan")  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(9):
            engine.step()
        snapshots.append(engine.take_snapshots(valid_job.id, 1))
    assert snapshots[0] == snapshots[1]


# --- one job's fault


def fail_for_pictures(x: torch.Tensor, _: Conditioning) -> None:
    """Fails for every picture, but not for zeros."""
    if bool(x.any()):
        raise RuntimeError(BROKEN)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_faulty_job_fails_and_the_engine_continues(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, jobs: int
) -> None:
    family = FaultyFamily(embedded, fail_for_pictures)
    engine = Engine({"embedded": family})  # pyright: ignore
    failing_jobs = [job(picture(count=2)) for _ in range(jobs)]
    for each in failing_jobs:
        engine.add(each)
    failures = [event for event in run_until_idle(engine) if isinstance(event, JobFailure)]
    assert sorted((event.job, event.blame) for event in failures) == sorted((each.id, "model") for each in failing_jobs)
    assert family.shapes == [2]  # only the harmless probe ran, in the shape of one image's own forward
    family._before = lambda *_: None
    valid_job = job(picture(steps=3))
    engine.add(valid_job)
    assert torch.equal(finish(engine)[valid_job.id, 0], run_uninterrupted(embedded, valid_job, finish)[valid_job.id, 0])


def test_an_engine_that_fails_on_harmless_input_blames_no_job(
    embedded: StableDiffusion, picture: Make, job: Make
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine = Engine({"embedded": FaultyFamily(embedded, fail)})  # pyright: ignore[reportArgumentType]
    one = job(picture())
    engine.add(one)
    before = engine.take_snapshots(one.id, 1)
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.step()
    assert engine.take_snapshots(one.id, 1) == before


@pytest.mark.parametrize("is_harmless", [True, False])
def test_a_failing_forward_of_a_whole_pipeline_is_blamed_the_same_way(
    tmp_path: Path, picture: Make, job: Make, monkeypatch: pytest.MonkeyPatch, is_harmless: bool
) -> None:
    save_small_pipeline("sd", tmp_path / "sd")
    family: Any = models.load_folder(str(tmp_path / "sd"), "sd")
    forward = family.pipeline.unet.forward

    def fail_or_forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if bool(sample.any()) or not is_harmless:
            raise RuntimeError(BROKEN)
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(family.pipeline.unet, "forward", fail_or_forward)
    engine = Engine({"sd": family})
    try:
        engine.add(job(picture(model="sd", sampler="unipc", steps=3)))
        if is_harmless:
            failures = [event for event in run_until_idle(engine) if isinstance(event, JobFailure)]
            assert [event.blame for event in failures] == ["model"]
        else:
            with pytest.raises(RuntimeError, match="mat1"):
                run_until_idle(engine)
    finally:
        engine.close()


# --- killed and resumed


def run_with_kills(
    family: Any, one: Job, rng: random.Random, finish: Make
) -> tuple[int, dict[tuple[str, int], torch.Tensor]]:
    """Runs the job in one engine after another; each dies after some steps and leaves only its snapshots."""
    snapshots = list[Snapshot]()
    kill_count = 0
    while True:
        engine = Engine({family.name: family}, rows=rng.choice([1, 4, 32]))
        engine.add(one, snapshots)
        for _ in range(rng.randint(1, 4)):
            engine.step()
        if (
            engine.is_idle
            or min((each.next_step for each in engine.take_snapshots(one.id, 1)), default=99) > one.task.steps - 3  # pyright: ignore[reportAttributeAccessIssue]
        ):
            break
        snapshots = engine.take_snapshots(one.id, epoch=kill_count + 1)
        kill_count = kill_count + 1
    engine = Engine({family.name: family})
    engine.add(one, snapshots)
    return kill_count, finish(engine)


INTERVALS = [(0.0, 1.0), (0.3, 0.7)]


@pytest.mark.sampled
@pytest.mark.parametrize(("sampler", "interval"), list(zip(TABLED, cycle(INTERVALS), strict=False)))
def test_random_kills_change_no_bit(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, sampler: str, interval: tuple[float, float]
) -> None:
    """Each sampler with one interval: the samplers of flow matching have both."""
    rng = random.Random(f"{sampler} {interval}")
    fields: dict[str, Any] = {"guidance_start": interval[0], "guidance_stop": interval[1]}
    fields["eta"] = 0.5 if sampler == "ddim" else 0.0
    one = job(picture(sampler=sampler, steps=8, bucket=2, seed=rng.randrange(1000), **fields))
    kill_count, latents = run_with_kills(embedded, one, rng, finish)
    assert kill_count >= 1
    expected = run_uninterrupted(embedded, one, finish)
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("sampler", [name for name in TABLED if name in FLOW_SCHEDULERS])
def test_random_kills_change_no_bit_of_flow_matching(
    flow: Any, picture: Make, job: Make, finish: Make, sampler: str, interval: tuple[float, float]
) -> None:
    rng = random.Random(f"flow {sampler} {interval}")
    fields: dict[str, Any] = {"guidance_start": interval[0], "guidance_stop": interval[1]}
    one = job(picture(family=flow, sampler=sampler, steps=8, count=2, bucket=4, **fields))
    kill_count, latents = run_with_kills(flow, one, rng, finish)
    assert kill_count >= 1
    expected = run_uninterrupted(flow, one, finish)
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


# --- moved to another shape


def run_moved(family: Any, one: Job, other_jobs: Sequence[Job], steps: int, finish: Make) -> torch.Tensor:
    """Starts the job beside others in a wide engine and ends it alone in a narrow one with other buckets."""
    wide_engine = Engine({family.name: family}, rows=16, buckets=(1, 2, 4, 8, 16))
    for each in (*other_jobs, one):
        wide_engine.add(each)
    for _ in range(steps):
        wide_engine.step()
    narrow_engine = Engine({family.name: family}, rows=1, buckets=(1, 3))
    narrow_engine.add(one, wide_engine.take_snapshots(one.id, 1))
    assert narrow_engine.take_snapshots(one.id, 1)[0].next_step == steps
    return finish(narrow_engine)[one.id, 0]


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", TABLED)
def test_a_job_that_moves_to_other_batch_shapes_draws_the_same_picture(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, sampler: str
) -> None:
    one = job(picture(sampler=sampler, steps=8))
    other_job = job(picture("a dog", count=3), user="bob")
    latents = run_moved(embedded, one, [other_job], 4, finish)
    assert decoded_psnr(embedded, latents, run_uninterrupted(embedded, one, finish)[one.id, 0]) >= LEAST_PSNR


@pytest.mark.parametrize("sampler", [name for name in TABLED if name in FLOW_SCHEDULERS])
def test_a_flow_matching_job_that_moves_draws_the_same_picture(
    flow: Any, picture: Make, job: Make, finish: Make, sampler: str
) -> None:
    one = job(picture(family=flow, sampler=sampler))
    other_job = job(picture("a dog", flow, sampler="euler", count=3), user="bob")
    latents = run_moved(flow, one, [other_job], 5, finish)
    assert decoded_psnr(flow, latents, run_uninterrupted(flow, one, finish)[one.id, 0]) >= LEAST_PSNR


# --- a worker's end


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_faulty_job_fails_and_its_worker_takes_the_next(harness: WorkerHarness) -> None:
    defaults: dict[str, Family] = harness.families
    faulty_family = FaultyFamily(defaults["embedded"], fail_for_pictures)
    harness.families = {"embedded": faulty_family}  # pyright: ignore[reportAttributeAccessIssue]
    _, task = await harness.start_worker()
    await harness.bot.dispatch(make_job())
    end = (await harness.collect_results())[-1]
    assert isinstance(end, FailedJob)
    assert end.blame == "model"
    faulty_family._before = lambda *_: None
    await harness.bot.dispatch(make_job(OTHER_JOB))
    assert isinstance((await harness.collect_results(OTHER_JOB))[-1], JobFinished)
    assert not task.done()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_after_a_lost_device_another_worker_resumes_from_the_snapshot(harness: WorkerHarness) -> None:
    defaults = harness.families
    fail_once = list[bool]()

    def raise_device_error(*_: object) -> None:
        time.sleep(STEP_SECONDS)
        if fail_once:
            raise RuntimeError("CUDA error: device-side assert triggered")

    harness.families = {"embedded": FaultyFamily(defaults["embedded"], raise_device_error)}  # pyright: ignore[reportAttributeAccessIssue]
    job = make_job(steps=STEPS)
    worker, task = await harness.start_worker("one")
    await harness.bot.dispatch(job)
    run = await wait_until_midway(worker)
    await wait_until(lambda: run.steps_saved)
    fail_once.append(True)
    with pytest.raises(Stuck, match="device-side assert"):
        await asyncio.wait_for(task, 30)
    harness.families = defaults
    snapshots = await harness.bot.get_snapshots(JOB)
    await harness.start_worker("two")
    results = await harness.collect_results()
    start_messages = [value for value in results if isinstance(value, JobStarted)]
    assert [(start.worker, start.step) for start in start_messages] == [("one", 0), ("two", snapshots[0].next_step)]
    assert snapshots[0].next_step > 0
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == await hash_local_pictures(
        harness, job
    )


@pytest.mark.parametrize("is_device_lost", [True, False])
def test_a_lost_device_before_the_first_step_is_told_from_a_failing_model(
    embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch, is_device_lost: bool
) -> None:
    class FailingEncoder(FaultyFamily):
        def encode_conditioning(self, *_: object, **__: object) -> Conditioning:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    errors: list[BaseException] = []
    engine = Engine({"embedded": FailingEncoder(embedded, lambda *_: None)})  # pyright: ignore[reportArgumentType]

    async def add() -> None:
        thread = EngineThread(engine, Watchdog(), lambda *_: None, errors.append)
        thread.start()
        try:
            await thread.call(lambda each: each.add(make_job()))
        finally:
            await thread.stop()
            await asyncio.sleep(0)

    if is_device_lost:
        monkeypatch.setattr("engine.batching.fault_isolation.torch.zeros", fail)
    with pytest.raises(DeviceLost if is_device_lost else JobRejected):
        asyncio.run(add())
    assert [type(each) for each in errors] == ([DeviceLost] if is_device_lost else [])


@pytest.mark.parametrize("kind", ["memory", "text"])
def test_an_unforeseen_error_at_the_start_blames_worker_or_model(kind: str) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory") if kind == "memory" else RuntimeError("this cannot be read")
    assert reject_before_start(error, torch.device("cpu")).blame == ("worker" if kind == "memory" else "model")


PROGRAM = """
import os, sys, time
from engine import __main__ as program
from engine.models.families.stable_diffusion import StableDiffusion

denoise = StableDiffusion.denoise

def losing(*arguments):
    time.sleep(float(os.environ["SLOWLY"]))
    if os.path.exists(os.environ["LOST"]):
        raise RuntimeError("CUDA error: device-side assert triggered")
    return denoise(*arguments)

StableDiffusion.denoise = losing
program._exit_now(program.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("harness", [BusLimits().lease], indirect=True)
async def test_a_worker_process_with_a_lost_device_ends_with_the_stuck_exit_code(
    harness: WorkerHarness, tmp_path: Path, calibration: Path
) -> None:
    await asyncio.to_thread(shutil.copy, calibration, tmp_path)
    mark = tmp_path / "lost"
    environment = {
        **os.environ,
        "DARKROOM_NATS_TOKEN": harness.broker.token,
        "OMP_NUM_THREADS": "1",
        "LOST": str(mark),
        "SLOWLY": str(STEP_SECONDS),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        "serve",
        "--nats",
        harness.broker.url,
        "--name",
        "one",
        "--data",
        str(tmp_path),
        env=environment,
    )
    await wait_until(lambda: "one" in harness.bot.workers or process.returncode is not None, 120)
    job = make_job(steps=STEPS)
    await harness.bot.dispatch(job)
    assert (await harness.wait_for_start()).worker == "one"
    async with asyncio.timeout(60):
        while not (snapshots := await harness.bot.get_snapshots(JOB)):
            await asyncio.sleep(0.05)
    await asyncio.to_thread(mark.touch)
    assert await asyncio.wait_for(process.wait(), 30) == EXIT_STUCK
    await harness.start_worker("two")
    results = await harness.collect_results()
    start_messages = [value for value in results if isinstance(value, JobStarted)]
    assert [start.worker for start in start_messages] == ["two"]
    assert start_messages[0].step >= snapshots[0].next_step > 0
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == await hash_local_pictures(
        harness, job
    )
