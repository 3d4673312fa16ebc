"""What goes wrong under way costs as little as can be: memory, numbers, one job's fault, a kill, a lost device.

On real networks: the embedded model for samplers by noise, a small Stable Diffusion 3 for those by flow matching.
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

import numpy as np
import pytest
import torch

from engine import families
from engine.__main__ import STUCK
from engine.bench.small_models import build
from engine.blame import DeviceLost, unforeseen
from engine.bus import Kept
from engine.engine import Developed, Engine, Failed, Stepped
from engine.families.family import Conditions, Family
from engine.families.stable_diffusion import StableDiffusion
from engine.job import Failed as FailedJob
from engine.job import Finished, Job, Picture, Snapshot, Started
from engine.plan.samplers import BY_FLOW, TABLED
from engine.unfit import Unfit
from engine.worker import Stuck
from engine.worker.pulse import Pulse
from engine.worker.thread import EngineThread
from tests.engine.shop import JOB, OTHER, Shop, a_job, midway, uninterrupted, until

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
LEAST_PSNR = 60.0  # dB, of decoded float32 pictures: what another batch shape may cost
SLOWLY, STEPS = 0.03, 120  # seconds a step at the least: a job is not over before its first snapshot
BROKEN = "mat1 and mat2 shapes cannot be multiplied"


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("small") / "sd3"
    build("sd3", folder)
    return families.load_folder(str(folder), "sd3")


class Ill:
    """A family whose network does something before it answers. `before(x, texts)` may raise, or give other texts."""

    def __init__(self, family: Any, before: Callable[[torch.Tensor, Conditions], Conditions | None]) -> None:
        self._family, self._before = family, before
        self.shapes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def denoise(self, x: torch.Tensor, t: torch.Tensor, texts: Conditions, *others: Any) -> torch.Tensor:
        texts = self._before(x, texts) or texts
        self.shapes.append(len(x))
        return self._family.denoise(x, t, texts, *others)


@pytest.fixture
def picture(recipe: Make) -> Make:
    """A recipe of the embedded model, or of another family."""

    def make(text: str = "a red cat", family: Any = None, **fields: Any) -> Any:
        usual: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "steps": 12}
        if family is not None:
            usual |= {"model": family.name, "guides": family.guides}
        return recipe(text, **(usual | fields))

    return make


def whole(family: Any, one: Job, finish: Make, **fields: Any) -> dict[tuple[str, int], torch.Tensor]:
    engine = Engine({family.name: family}, **fields)
    engine.add(one)
    return finish(engine)


def everything(engine: Engine) -> list[Any]:
    events = list[Any]()
    while not engine.idle:
        events += engine.step()
    return events


# --- memory


def test_out_of_memory_retries_the_same_step_in_half_the_rows_bit_for_bit(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make
) -> None:
    jobs = [job(picture(text, steps=5), user=text) for text in ("a cat", "a dog", "a tree", "a house")]
    undisturbed, seen, refused = Engine({"embedded": embedded}, rows=4), [], []

    def full(x: torch.Tensor, _: Conditions) -> None:
        seen.append([engine.snapshots(each.id, 1) for each in jobs])
        if len(x) > 4:
            refused.append(len(x))
            raise torch.OutOfMemoryError("the test's memory is full")

    engine = Engine({"embedded": Ill(embedded, full)})  # pyright: ignore[reportArgumentType]
    for each in jobs:
        engine.add(each)
        undisturbed.add(each)
    first = engine.step()
    assert refused == [8]
    assert seen[0] == seen[1]
    assert [event.k for event in first if isinstance(event, Stepped)] == [1, 1]
    latents, expected = finish(engine), finish(undisturbed)
    assert refused == [8]
    assert latents.keys() == expected.keys()
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


# --- numbers that are not finite


@pytest.mark.parametrize("bucket", [8, None])
def test_a_spoilt_row_changes_no_bit_of_its_mates(
    embedded: StableDiffusion, picture: Make, job: Make, bucket: int | None
) -> None:
    good = [job(picture(text, steps=11, bucket=bucket), user=text) for text in ("a cat", "a dog")]
    other = job(picture("a spoilt picture", steps=11, bucket=bucket), user="bob")
    mark = embedded.condition("a spoilt picture", other.task)[0]

    def spoil(_: torch.Tensor, texts: Conditions) -> Conditions:
        spoilt = (texts[0] == mark).flatten(1).all(dim=1).view(-1, 1, 1)
        return (torch.where(spoilt, float("nan"), texts[0]), *texts[1:])

    outcomes = list[Any]()
    for family in (embedded, Ill(embedded, spoil)):
        engine = Engine({"embedded": family})  # pyright: ignore[reportArgumentType]
        for each in (good[0], other, good[1]):
            engine.add(each)
        outcomes.append(everything(engine))
    plain, spoilt = outcomes
    assert [(event.job, event.blame) for event in spoilt if isinstance(event, Failed)] == [(other.id, "model")]
    left = {event.job: event.latents for event in spoilt if isinstance(event, Developed)}
    assert left.keys() == {each.id for each in good}
    for event in plain:
        if isinstance(event, Developed) and event.job != other.id and bucket:
            assert torch.equal(left[event.job], event.latents)  # the batch's shape is pinned, so all along
        elif isinstance(event, Developed) and event.job != other.id:
            torch.testing.assert_close(left[event.job], event.latents, rtol=1e-4, atol=1e-4)


def test_as_long_as_a_spoilt_row_is_in_the_batch_its_mates_have_the_same_bits(
    embedded: StableDiffusion, picture: Make, job: Make
) -> None:
    """Without a pinned shape: ten steps, which is when the engine looks."""
    good, bad, fine = job(picture("a cat")), job(picture("a dog"), user="bob"), job(picture("a dog"), user="bob")
    kept = list[Any]()
    for mate, spoilt in ((bad, True), (fine, False)):
        engine = Engine({"embedded": embedded})
        for each in (good, mate):
            engine.add(each)
        if spoilt:
            engine._images[mate.id][0].x *= float("nan")  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(9):
            engine.step()
        kept.append(engine.snapshots(good.id, 1))
    assert kept[0] == kept[1]


# --- one job's fault


def chosen(x: torch.Tensor, _: Conditions) -> None:
    """Every picture fails, and zeros do not."""
    if bool(x.any()):
        raise RuntimeError(BROKEN)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_poisonous_job_that_is_alone_fails_and_the_engine_goes_on(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, jobs: int
) -> None:
    ill = Ill(embedded, chosen)
    engine, bad = Engine({"embedded": ill}), [job(picture(count=2)) for _ in range(jobs)]  # pyright: ignore
    for each in bad:
        engine.add(each)
    failed = [event for event in everything(engine) if isinstance(event, Failed)]
    assert sorted((event.job, event.blame) for event in failed) == sorted((each.id, "model") for each in bad)
    assert ill.shapes == [2]  # nothing ran but the harmless picture, in the shape of one image's own forward
    ill._before = lambda *_: None
    good = job(picture(steps=3))
    engine.add(good)
    assert torch.equal(finish(engine)[good.id, 0], whole(embedded, good, finish)[good.id, 0])


def test_where_harmless_pictures_fail_too_it_is_not_the_jobs_fault(
    embedded: StableDiffusion, picture: Make, job: Make
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine, one = Engine({"embedded": Ill(embedded, broken)}), job(picture())  # pyright: ignore[reportArgumentType]
    engine.add(one)
    before = engine.snapshots(one.id, 1)
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.step()
    assert engine.snapshots(one.id, 1) == before


@pytest.mark.parametrize("harmless", [True, False])
def test_a_whole_pictures_forward_that_fails_is_judged_likewise(
    tmp_path: Path, picture: Make, job: Make, monkeypatch: pytest.MonkeyPatch, harmless: bool
) -> None:
    build("sd", tmp_path / "sd")
    known: Any = families.load_folder(str(tmp_path / "sd"), "sd")
    forward = known.pipeline.unet.forward

    def ill(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if bool(sample.any()) or not harmless:
            raise RuntimeError(BROKEN)
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(known.pipeline.unet, "forward", ill)
    engine = Engine({"sd": known})
    try:
        engine.add(job(picture(model="sd", sampler="unipc", steps=3)))
        if harmless:
            failed = [event for event in everything(engine) if isinstance(event, Failed)]
            assert [event.blame for event in failed] == ["model"]
        else:
            with pytest.raises(RuntimeError, match="mat1"):
                everything(engine)
    finally:
        engine.close()


# --- killed and resumed


def killed(family: Any, one: Job, luck: random.Random, finish: Make) -> tuple[int, dict[tuple[str, int], torch.Tensor]]:
    """The job by one engine after another, each of which dies after some steps, and is survived by its snapshots."""
    kept, kills = list[Snapshot](), 0
    while True:
        engine = Engine({family.name: family}, rows=luck.choice([1, 4, 32]))
        engine.add(one, kept)
        for _ in range(luck.randint(1, 4)):
            engine.step()
        if engine.idle or min((shot.k for shot in engine.snapshots(one.id, 1)), default=99) > one.task.steps - 3:  # pyright: ignore
            break
        kept, kills = engine.snapshots(one.id, epoch=kills + 1), kills + 1
    engine = Engine({family.name: family})
    engine.add(one, kept)
    return kills, finish(engine)


INTERVALS = [(0.0, 1.0), (0.3, 0.7)]


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("sampler", TABLED)
def test_random_kills_change_no_bit(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, sampler: str, interval: tuple[float, float]
) -> None:
    luck = random.Random(f"{sampler} {interval}")
    fields: dict[str, Any] = {"guidance_start": interval[0], "guidance_stop": interval[1]}
    fields["eta"] = 0.5 if sampler == "ddim" else 0.0
    one = job(picture(sampler=sampler, steps=8, bucket=2, seed=luck.randrange(1000), **fields))
    kills, latents = killed(embedded, one, luck, finish)
    assert kills >= 1
    expected = whole(embedded, one, finish)
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("sampler", [name for name in TABLED if name in BY_FLOW])
def test_random_kills_change_no_bit_of_flow_matching(
    flow: Any, picture: Make, job: Make, finish: Make, sampler: str, interval: tuple[float, float]
) -> None:
    luck = random.Random(f"flow {sampler} {interval}")
    fields: dict[str, Any] = {"guidance_start": interval[0], "guidance_stop": interval[1]}
    one = job(picture(family=flow, sampler=sampler, steps=8, count=2, bucket=4, **fields))
    kills, latents = killed(flow, one, luck, finish)
    assert kills >= 1
    expected = whole(flow, one, finish)
    assert all(torch.equal(latents[key], expected[key]) for key in expected)


# --- moved to another shape


def psnr(family: Any, some: torch.Tensor, others: torch.Tensor) -> float:
    """Of the decoded pictures, in dB; infinite where they are equal."""
    one, other = (np.asarray(family.decode(each), dtype=np.float64) for each in (some, others))
    error = float(((one - other) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def moved(family: Any, one: Job, mates: Sequence[Job], steps: int, finish: Make) -> torch.Tensor:
    """Begun among others in a wide engine, ended alone in a narrow one of other buckets."""
    wide = Engine({family.name: family}, rows=16, buckets=(1, 2, 4, 8, 16))
    for each in (*mates, one):
        wide.add(each)
    for _ in range(steps):
        wide.step()
    narrow = Engine({family.name: family}, rows=1, buckets=(1, 3))
    narrow.add(one, wide.snapshots(one.id, 1))
    assert narrow.snapshots(one.id, 1)[0].k == steps
    return finish(narrow)[one.id, 0]


@pytest.mark.parametrize("sampler", TABLED)
def test_a_job_that_moves_to_other_batch_shapes_stays_the_same_picture(
    embedded: StableDiffusion, picture: Make, job: Make, finish: Make, sampler: str
) -> None:
    one, mate = job(picture(sampler=sampler, steps=8)), job(picture("a dog", count=3), user="bob")
    latents = moved(embedded, one, [mate], 4, finish)
    assert psnr(embedded, latents, whole(embedded, one, finish)[one.id, 0]) >= LEAST_PSNR


@pytest.mark.parametrize("sampler", [name for name in TABLED if name in BY_FLOW])
def test_a_job_of_flow_matching_that_moves_stays_the_same_picture(
    flow: Any, picture: Make, job: Make, finish: Make, sampler: str
) -> None:
    one, mate = (
        job(picture(family=flow, sampler=sampler)),
        job(picture("a dog", flow, sampler="euler", count=3), user="bob"),
    )
    latents = moved(flow, one, [mate], 5, finish)
    assert psnr(flow, latents, whole(flow, one, finish)[one.id, 0]) >= LEAST_PSNR


# --- a worker's end


@pytest.mark.asyncio
async def test_a_poisonous_job_fails_and_its_worker_takes_the_next(shop: Shop) -> None:
    well: dict[str, Family] = shop.loaded
    ill = Ill(well["embedded"], chosen)
    shop.loaded = {"embedded": ill}  # pyright: ignore[reportAttributeAccessIssue]
    _, task = await shop.worker()
    await shop.bot.dispatch(a_job())
    end = (await shop.results())[-1]
    assert isinstance(end, FailedJob)
    assert end.blame == "model"
    ill._before = lambda *_: None
    await shop.bot.dispatch(a_job(OTHER))
    assert isinstance((await shop.results(OTHER))[-1], Finished)
    assert not task.done()


@pytest.mark.asyncio
async def test_a_lost_device_ends_the_worker_and_another_goes_on_from_the_snapshot(shop: Shop) -> None:
    well, lost = shop.loaded, list[bool]()

    def lose(*_: object) -> None:
        time.sleep(SLOWLY)
        if lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

    shop.loaded = {"embedded": Ill(well["embedded"], lose)}  # pyright: ignore[reportAttributeAccessIssue]
    job = a_job(steps=STEPS)
    worker, task = await shop.worker("one")
    await shop.bot.dispatch(job)
    run = await midway(worker)
    await until(lambda: run.saved)
    lost.append(True)
    with pytest.raises(Stuck, match="device-side assert"):
        await asyncio.wait_for(task, 30)
    shop.loaded = well
    kept = await shop.bot.get_snapshots(JOB)
    await shop.worker("two")
    said = await shop.results()
    starts = [value for value in said if isinstance(value, Started)]
    assert [(start.worker, start.step) for start in starts] == [("one", 0), ("two", kept[0].k)]
    assert kept[0].k > 0
    assert [value.sha256 for value in said if isinstance(value, Picture)] == await uninterrupted(shop, job)


@pytest.mark.parametrize("lost", [True, False])
def test_a_device_that_is_lost_before_the_first_step_is_told_from_a_model_that_fails(
    embedded: StableDiffusion, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    class Unread(Ill):
        def condition(self, *_: object, **__: object) -> Conditions:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def nothing(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    ended: list[BaseException] = []
    engine = Engine({"embedded": Unread(embedded, lambda *_: None)})  # pyright: ignore[reportArgumentType]

    async def add() -> None:
        thread = EngineThread(engine, Pulse(), lambda *_: None, ended.append)
        thread.start()
        try:
            await thread.call(lambda each: each.add(a_job()))
        finally:
            await thread.stop()
            await asyncio.sleep(0)

    if lost:
        monkeypatch.setattr("engine.blame.torch.zeros", nothing)
    with pytest.raises(DeviceLost if lost else Unfit):
        asyncio.run(add())
    assert [type(each) for each in ended] == ([DeviceLost] if lost else [])


@pytest.mark.parametrize("kind", ["memory", "text"])
def test_whose_fault_it_is_that_a_job_cannot_be_begun(kind: str) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory") if kind == "memory" else RuntimeError("this cannot be read")
    assert unforeseen(error, torch.device("cpu")).blame == ("worker" if kind == "memory" else "model")


LOSING = """
import os, sys, time
from engine import __main__ as program
from engine.families.stable_diffusion import StableDiffusion

denoise = StableDiffusion.denoise

def losing(*arguments):
    time.sleep(float(os.environ["SLOWLY"]))
    if os.path.exists(os.environ["LOST"]):
        raise RuntimeError("CUDA error: device-side assert triggered")
    return denoise(*arguments)

StableDiffusion.denoise = losing
program._leave(program.main(sys.argv[1:]))
"""


@pytest.mark.asyncio
@pytest.mark.parametrize("shop", [Kept().lease], indirect=True)
async def test_a_process_that_lost_its_device_says_so_by_its_exit_code(
    shop: Shop, tmp_path: Path, calibration: Path
) -> None:
    await asyncio.to_thread(shutil.copy, calibration, tmp_path)
    mark = tmp_path / "lost"
    environment = {
        **os.environ, "DARKROOM_NATS_TOKEN": shop.broker.token, "OMP_NUM_THREADS": "1", "LOST": str(mark),
        "SLOWLY": str(SLOWLY),
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOSING, "serve", "--nats", shop.broker.url, "--name", "one", "--data", str(tmp_path),
        env=environment,
    )  # fmt: skip
    await until(lambda: "one" in shop.bot.workers or process.returncode is not None, 120)
    job = a_job(steps=STEPS)
    await shop.bot.dispatch(job)
    assert (await shop.started()).worker == "one"
    async with asyncio.timeout(60):
        while not (kept := await shop.bot.get_snapshots(JOB)):
            await asyncio.sleep(0.05)
    await asyncio.to_thread(mark.touch)
    assert await asyncio.wait_for(process.wait(), 30) == STUCK
    await shop.worker("two")
    said = await shop.results()
    starts = [value for value in said if isinstance(value, Started)]
    assert [start.worker for start in starts] == ["two"]
    assert starts[0].step >= kept[0].k > 0
    assert [value.sha256 for value in said if isinstance(value, Picture)] == await uninterrupted(shop, job)
