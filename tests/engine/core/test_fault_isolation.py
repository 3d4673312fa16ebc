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
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.resumption import decoded_psnr
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine import models
from engine.__main__ import EXIT_STUCK
from engine.bus import BusLimits
from engine.contract import Job, JobFinished, JobStarted, PictureReady, Snapshot
from engine.contract import JobFailed as FailedJob
from engine.contract.rejection import JobRejected
from engine.core.engine import Engine, JobFailure, LatentsDone, StepDone
from engine.core.fault_isolation import DeviceLost, reject_before_start
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.family import Conditioning, Family
from engine.plan.samplers import FLOW_SCHEDULERS, TABLED
from engine.worker.engine_thread import EngineThread
from engine.worker.heartbeats import Stuck
from engine.worker.watchdog import Watchdog
from shared.worker_harness import JOB, OTHER, Shop, a_job, midway, uninterrupted, until

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
LEAST_PSNR = 60.0  # dB of decoded float32 pictures: the least after a change of batch shape
STEP_SECONDS, STEPS = 0.03, 120  # least seconds a step, so that a job lasts beyond its first snapshot
BROKEN = "mat1 and mat2 shapes cannot be multiplied"


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("small") / "sd3"
    save_small_pipeline("sd3", folder)
    return models.load_folder(str(folder), "sd3")


class FaultyFamily:
    """A family whose network first calls `before(x, texts)`, which may raise or return other texts."""

    def __init__(self, family: Any, before: Callable[[torch.Tensor, Conditioning], Conditioning | None]) -> None:
        self._family, self._before = family, before
        self.shapes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, *others: Any) -> torch.Tensor:
        conditioning = self._before(x, conditioning) or conditioning
        self.shapes.append(len(x))
        return self._family.denoise(x, t, conditioning, *others)


@pytest.fixture
def picture(recipe: Make) -> Make:
    """Builds a recipe of the embedded model or of another family."""

    def make(text: str = "a red cat", family: Any = None, **fields: Any) -> Any:
        usual: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "steps": 12}
        if family is not None:
            usual |= {"model": family.name, "guides": family.guides}
        return recipe(text, **(usual | fields))

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
    undisturbed, snapshots, refused = Engine({"embedded": embedded}, rows=4), [], []

    def run_out_of_memory(x: torch.Tensor, _: Conditioning) -> None:
        snapshots.append([engine.take_snapshots(each.id, 1) for each in jobs])
        if len(x) > 4:
            refused.append(len(x))
            raise torch.OutOfMemoryError("the test's memory is full")

    engine = Engine({"embedded": FaultyFamily(embedded, run_out_of_memory)})  # pyright: ignore[reportArgumentType]
    for each in jobs:
        engine.add(each)
        undisturbed.add(each)
    first = engine.step()
    assert refused == [8]
    assert snapshots[0] == snapshots[1]
    assert [event.step for event in first if isinstance(event, StepDone)] == [1, 1]
    latents, expected = finish(engine), finish(undisturbed)
    assert refused == [8]
    assert latents.keys() == expected.keys()
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


# --- numbers that are not finite


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [8, None])
def test_a_nan_row_fails_its_job_and_changes_no_other_row(
    embedded: StableDiffusion, picture: Make, job: Make, bucket: int | None
) -> None:
    good = [job(picture(text, steps=11, bucket=bucket), user=text) for text in ("a cat", "a dog")]
    other = job(picture("a spoilt picture", steps=11, bucket=bucket), user="bob")
    mark = embedded.encode_conditioning("a spoilt picture", other.task)[0]

    def spoil(_: torch.Tensor, texts: Conditioning) -> Conditioning:
        spoilt = (texts[0] == mark).flatten(1).all(dim=1).view(-1, 1, 1)
        return (torch.where(spoilt, float("nan"), texts[0]), *texts[1:])

    outcomes = list[Any]()
    for family in (embedded, FaultyFamily(embedded, spoil)):
        engine = Engine({"embedded": family})  # pyright: ignore[reportArgumentType]
        for each in (good[0], other, good[1]):
            engine.add(each)
        outcomes.append(run_until_idle(engine))
    plain, spoilt = outcomes
    assert [(event.job, event.blame) for event in spoilt if isinstance(event, JobFailure)] == [(other.id, "model")]
    finished = {event.job: event.latents for event in spoilt if isinstance(event, LatentsDone)}
    assert finished.keys() == {each.id for each in good}
    for event in plain:
        if isinstance(event, LatentsDone) and event.job != other.id and bucket:
            assert torch.equal(finished[event.job], event.latents)  # a pinned batch shape keeps every bit
        elif isinstance(event, LatentsDone) and event.job != other.id:
            torch.testing.assert_close(finished[event.job], event.latents, rtol=1e-4, atol=1e-4)


def test_rows_beside_a_nan_row_keep_their_bits_in_any_batch_shape(
    embedded: StableDiffusion, picture: Make, job: Make
) -> None:
    """Without a pinned shape this holds for ten steps; then the engine looks for NaN."""
    good, bad, fine = job(picture("a cat")), job(picture("a dog"), user="bob"), job(picture("a dog"), user="bob")
    snapshots = list[Any]()
    for mate, spoilt in ((bad, True), (fine, False)):
        engine = Engine({"embedded": embedded})
        for each in (good, mate):
            engine.add(each)
        if spoilt:
            engine._images[mate.id][0].x *= float("nan")  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(9):
            engine.step()
        snapshots.append(engine.take_snapshots(good.id, 1))
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
    engine, bad = Engine({"embedded": family}), [job(picture(count=2)) for _ in range(jobs)]  # pyright: ignore
    for each in bad:
        engine.add(each)
    failed = [event for event in run_until_idle(engine) if isinstance(event, JobFailure)]
    assert sorted((event.job, event.blame) for event in failed) == sorted((each.id, "model") for each in bad)
    assert family.shapes == [2]  # only the harmless probe ran, in the shape of one image's own forward
    family._before = lambda *_: None
    good = job(picture(steps=3))
    engine.add(good)
    assert torch.equal(finish(engine)[good.id, 0], run_uninterrupted(embedded, good, finish)[good.id, 0])


def test_an_engine_that_fails_on_harmless_input_blames_no_job(
    embedded: StableDiffusion, picture: Make, job: Make
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine, one = Engine({"embedded": FaultyFamily(embedded, fail)}), job(picture())  # pyright: ignore[reportArgumentType]
    engine.add(one)
    before = engine.take_snapshots(one.id, 1)
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.step()
    assert engine.take_snapshots(one.id, 1) == before


@pytest.mark.parametrize("harmless", [True, False])
def test_a_failing_forward_of_a_whole_pipeline_is_blamed_the_same_way(
    tmp_path: Path, picture: Make, job: Make, monkeypatch: pytest.MonkeyPatch, harmless: bool
) -> None:
    save_small_pipeline("sd", tmp_path / "sd")
    family: Any = models.load_folder(str(tmp_path / "sd"), "sd")
    forward = family.pipeline.unet.forward

    def fail_or_forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if bool(sample.any()) or not harmless:
            raise RuntimeError(BROKEN)
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(family.pipeline.unet, "forward", fail_or_forward)
    engine = Engine({"sd": family})
    try:
        engine.add(job(picture(model="sd", sampler="unipc", steps=3)))
        if harmless:
            failed = [event for event in run_until_idle(engine) if isinstance(event, JobFailure)]
            assert [event.blame for event in failed] == ["model"]
        else:
            with pytest.raises(RuntimeError, match="mat1"):
                run_until_idle(engine)
    finally:
        engine.close()


# --- killed and resumed


def run_with_kills(
    family: Any, one: Job, luck: random.Random, finish: Make
) -> tuple[int, dict[tuple[str, int], torch.Tensor]]:
    """Runs the job in one engine after another; each dies after some steps and leaves only its snapshots."""
    snapshots, kills = list[Snapshot](), 0
    while True:
        engine = Engine({family.name: family}, rows=luck.choice([1, 4, 32]))
        engine.add(one, snapshots)
        for _ in range(luck.randint(1, 4)):
            engine.step()
        if (
            engine.is_idle
            or min((each.k for each in engine.take_snapshots(one.id, 1)), default=99) > one.task.steps - 3  # pyright: ignore[reportAttributeAccessIssue]
        ):
            break
        snapshots, kills = engine.take_snapshots(one.id, epoch=kills + 1), kills + 1
    engine = Engine({family.name: family})
    engine.add(one, snapshots)
    return kills, finish(engine)


INTERVALS = [(0.0, 1.0), (0.3, 0.7)]


@pytest.mark.sampled
@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("sampler", TABLED)
def test_random_kills_change_no_bit(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, sampler: str, interval: tuple[float, float]
) -> None:
    luck = random.Random(f"{sampler} {interval}")
    fields: dict[str, Any] = {"guidance_start": interval[0], "guidance_stop": interval[1]}
    fields["eta"] = 0.5 if sampler == "ddim" else 0.0
    one = job(picture(sampler=sampler, steps=8, bucket=2, seed=luck.randrange(1000), **fields))
    kills, latents = run_with_kills(embedded, one, luck, finish)
    assert kills >= 1
    expected = run_uninterrupted(embedded, one, finish)
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("sampler", [name for name in TABLED if name in FLOW_SCHEDULERS])
def test_random_kills_change_no_bit_of_flow_matching(
    flow: Any, picture: Make, job: Make, finish: Make, sampler: str, interval: tuple[float, float]
) -> None:
    luck = random.Random(f"flow {sampler} {interval}")
    fields: dict[str, Any] = {"guidance_start": interval[0], "guidance_stop": interval[1]}
    one = job(picture(family=flow, sampler=sampler, steps=8, count=2, bucket=4, **fields))
    kills, latents = run_with_kills(flow, one, luck, finish)
    assert kills >= 1
    expected = run_uninterrupted(flow, one, finish)
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


# --- moved to another shape


def run_moved(family: Any, one: Job, mates: Sequence[Job], steps: int, finish: Make) -> torch.Tensor:
    """Starts the job beside others in a wide engine and ends it alone in a narrow one with other buckets."""
    wide = Engine({family.name: family}, rows=16, buckets=(1, 2, 4, 8, 16))
    for each in (*mates, one):
        wide.add(each)
    for _ in range(steps):
        wide.step()
    narrow = Engine({family.name: family}, rows=1, buckets=(1, 3))
    narrow.add(one, wide.take_snapshots(one.id, 1))
    assert narrow.take_snapshots(one.id, 1)[0].k == steps
    return finish(narrow)[one.id, 0]


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", TABLED)
def test_a_job_that_moves_to_other_batch_shapes_draws_the_same_picture(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, sampler: str
) -> None:
    one, mate = job(picture(sampler=sampler, steps=8)), job(picture("a dog", count=3), user="bob")
    latents = run_moved(embedded, one, [mate], 4, finish)
    assert decoded_psnr(embedded, latents, run_uninterrupted(embedded, one, finish)[one.id, 0]) >= LEAST_PSNR


@pytest.mark.parametrize("sampler", [name for name in TABLED if name in FLOW_SCHEDULERS])
def test_a_flow_matching_job_that_moves_draws_the_same_picture(
    flow: Any, picture: Make, job: Make, finish: Make, sampler: str
) -> None:
    one, mate = (
        job(picture(family=flow, sampler=sampler)),
        job(picture("a dog", flow, sampler="euler", count=3), user="bob"),
    )
    latents = run_moved(flow, one, [mate], 5, finish)
    assert decoded_psnr(flow, latents, run_uninterrupted(flow, one, finish)[one.id, 0]) >= LEAST_PSNR


# --- a worker's end


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_faulty_job_fails_and_its_worker_takes_the_next(shop: Shop) -> None:
    usual: dict[str, Family] = shop.loaded
    faulty = FaultyFamily(usual["embedded"], fail_for_pictures)
    shop.loaded = {"embedded": faulty}  # pyright: ignore[reportAttributeAccessIssue]
    _, task = await shop.worker()
    await shop.bot.dispatch(a_job())
    end = (await shop.results())[-1]
    assert isinstance(end, FailedJob)
    assert end.blame == "model"
    faulty._before = lambda *_: None
    await shop.bot.dispatch(a_job(OTHER))
    assert isinstance((await shop.results(OTHER))[-1], JobFinished)
    assert not task.done()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_after_a_lost_device_another_worker_resumes_from_the_snapshot(shop: Shop) -> None:
    usual, lost = shop.loaded, list[bool]()

    def lose(*_: object) -> None:
        time.sleep(STEP_SECONDS)
        if lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

    shop.loaded = {"embedded": FaultyFamily(usual["embedded"], lose)}  # pyright: ignore[reportAttributeAccessIssue]
    job = a_job(steps=STEPS)
    worker, task = await shop.worker("one")
    await shop.bot.dispatch(job)
    run = await midway(worker)
    await until(lambda: run.steps_saved)
    lost.append(True)
    with pytest.raises(Stuck, match="device-side assert"):
        await asyncio.wait_for(task, 30)
    shop.loaded = usual
    snapshots = await shop.bot.get_snapshots(JOB)
    await shop.worker("two")
    results = await shop.results()
    starts = [value for value in results if isinstance(value, JobStarted)]
    assert [(start.worker, start.step) for start in starts] == [("one", 0), ("two", snapshots[0].k)]
    assert snapshots[0].k > 0
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == await uninterrupted(shop, job)


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_device_before_the_first_step_is_told_from_a_failing_model(
    embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch, lost: bool
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
            await thread.call(lambda each: each.add(a_job()))
        finally:
            await thread.stop()
            await asyncio.sleep(0)

    if lost:
        monkeypatch.setattr("engine.core.fault_isolation.torch.zeros", fail)
    with pytest.raises(DeviceLost if lost else JobRejected):
        asyncio.run(add())
    assert [type(each) for each in errors] == ([DeviceLost] if lost else [])


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
@pytest.mark.parametrize("shop", [BusLimits().lease], indirect=True)
async def test_a_worker_process_with_a_lost_device_ends_with_the_stuck_exit_code(
    shop: Shop, tmp_path: Path, calibration: Path
) -> None:
    await asyncio.to_thread(shutil.copy, calibration, tmp_path)
    mark = tmp_path / "lost"
    environment = {
        **os.environ, "DARKROOM_NATS_TOKEN": shop.broker.token, "OMP_NUM_THREADS": "1", "LOST": str(mark),
        "SLOWLY": str(STEP_SECONDS),
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "serve", "--nats", shop.broker.url, "--name", "one", "--data", str(tmp_path),
        env=environment,
    )  # fmt: skip
    await until(lambda: "one" in shop.bot.workers or process.returncode is not None, 120)
    job = a_job(steps=STEPS)
    await shop.bot.dispatch(job)
    assert (await shop.started()).worker == "one"
    async with asyncio.timeout(60):
        while not (snapshots := await shop.bot.get_snapshots(JOB)):
            await asyncio.sleep(0.05)
    await asyncio.to_thread(mark.touch)
    assert await asyncio.wait_for(process.wait(), 30) == EXIT_STUCK
    await shop.worker("two")
    results = await shop.results()
    starts = [value for value in results if isinstance(value, JobStarted)]
    assert [start.worker for start in starts] == ["two"]
    assert starts[0].step >= snapshots[0].k > 0
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == await uninterrupted(shop, job)
