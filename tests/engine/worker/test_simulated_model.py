"""`--simulated`: the real worker and engine on a device that only sleeps."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from engine.bus.broker.embedded import Broker
from engine.contract import JobFinished, JobStarted, PictureReady
from engine.core.engine import Engine
from engine.output.decode_worker import DecodeWorker
from engine.plan import TABLED
from engine.worker.local_run import run_locally
from engine.worker.simulated_model import NAME, SimulatedModel, build_calibration, forward_ms
from shared.worker_harness import JOB, LEASE, OTHER, Shop, a_job, uninterrupted, until
from tests.engine.process.test_settings import run

# A killed worker's job is free after one lease, so the process gets the short lease of these tests.
SERVE = (
    "import sys\nfrom engine.bus import connection_base\nfrom engine.bus.streams import BusLimits\n"
    f"connection_base.BusLimits = lambda: BusLimits(lease={LEASE})\n"
    "from engine.__main__ import _exit_now, main\n_exit_now(main(sys.argv[1:]))"
)


def build_job(job: str = JOB, **recipe: Any) -> Any:
    plain: dict[str, Any] = {"model": NAME, "sampler": "ddpm", "steps": 200, "guidance": 3.0, "count": 2}
    return a_job(job, **{**plain, "bucket": None, **recipe})


@pytest.fixture
def simulated_lane() -> Iterator[DecodeWorker]:
    lane = DecodeWorker({NAME: SimulatedModel(row_ms=0.001)})
    yield lane
    lane.close()


@pytest_asyncio.fixture
async def simulators(tmp_path: Path, simulated_lane: DecodeWorker) -> AsyncIterator[Shop]:
    """A broker and the bot's end of the bus; the workers are processes."""
    async with Broker(tmp_path / "nats") as broker:
        shop = Shop(broker, {NAME: SimulatedModel(row_ms=0.001)}, simulated_lane, LEASE)
        shop.bot = await shop.join()
        await shop.bot.watch_workers()
        yield shop
        await shop.bot.close()


async def start_worker(shop: Shop, name: str, *options: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, "serve", "--nats", shop.broker.url, "--name", name, "--simulated", *options,
        env={**os.environ, "DARKROOM_NATS_TOKEN": shop.broker.token},
    )  # fmt: skip
    await until(lambda: name in shop.bot.workers or process.returncode is not None, 120)
    assert process.returncode is None
    return process


@pytest.mark.parametrize(("row_ms", "rows", "found"), [(0.1, 32, 32), (0.5, 32, 32), (0.5, 16, 16), (2.0, 32, 8)])
def test_the_batch_limit_equals_what_a_calibration_finds(row_ms: float, rows: int, found: int) -> None:
    assert build_calibration(row_ms, rows).rows == found


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_of_a_killed_worker_ends_elsewhere_with_the_same_bytes(simulators: Shop) -> None:
    job = build_job()
    expected = await uninterrupted(simulators, job)
    first = await start_worker(simulators, "first", "--row-ms", "5")  # more than a hundred steps of 21 ms
    presence = simulators.bot.workers["first"]
    assert (presence.rows, [warm.name for warm in presence.models], presence.models[0].loaded) == (8, [NAME], True)
    await simulators.bot.dispatch(job)
    assert (await simulators.started()).worker == "first"
    async with asyncio.timeout(60):
        while not (snapshots := await simulators.bot.get_snapshots(JOB)):
            await asyncio.sleep(0.02)
    first.kill()
    await first.wait()
    second = await start_worker(simulators, "second", "--row-ms", "0.1")
    results = await simulators.results()
    [start] = [value for value in results if isinstance(value, JobStarted)]
    assert start.worker == "second"
    assert 0 < snapshots[0].k <= start.step < 200
    assert isinstance(results[-1], JobFinished)
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == expected
    second.terminate()
    assert await asyncio.wait_for(second.wait(), 30) == 0


@pytest.mark.parametrize("sampler", SimulatedModel.samplers)
def test_a_job_draws_the_same_latents_beside_other_jobs(sampler: str) -> None:
    families = {NAME: SimulatedModel(row_ms=0.001)}
    job, mate = build_job(sampler=sampler, steps=8), build_job(OTHER, sampler=sampler, steps=8, seed=99, count=3)
    together = Engine(families)
    together.add(job)
    together.add(mate)
    alone = Engine(families)
    alone.add(job)
    for _ in range(5):
        together.step()
        alone.step()
    assert together.take_snapshots(JOB, 1) == alone.take_snapshots(JOB, 1)


def test_seed_and_steps_decide_the_picture() -> None:
    families = {NAME: SimulatedModel(row_ms=0.001)}
    usual: dict[str, Any] = {"steps": 8, "count": 1}
    same = [run_locally(build_job(**usual), families).pictures for _ in range(2)]
    changes: list[dict[str, Any]] = [{"seed": 8}, {"steps": 9}]
    others = [run_locally(build_job(**usual | change), families).pictures for change in changes]
    assert same[0] == same[1]
    assert all(other != same[0] for other in others)
    assert len(SimulatedModel.samplers) == len(TABLED)


def test_a_forward_takes_the_time_that_the_calibration_announces() -> None:
    family, measured = SimulatedModel(row_ms=2.0), build_calibration(2.0, 24)
    x, texts = torch.zeros(10, 4, 8, 8), (torch.zeros(10, 4),)
    began = time.monotonic()
    family.denoise(x, torch.full((10,), 500.0), texts, "float32")
    assert time.monotonic() - began >= 0.021
    assert measured.bucket_ms == {size: forward_ms(size, 2.0) for size in (1, 2, 4, 8, 16, 24)}
    assert (measured.rows, measured.row_ms) == (8, pytest.approx(17 / 8))


def test_a_picture_survives_encode_and_decode() -> None:
    family = SimulatedModel(row_ms=1.0)
    picture = family.decode(torch.linspace(-1.5, 1.5, 256).view(4, 8, 8))
    assert picture.size == (64, 64)
    assert family.decode(family.encode_image(picture)).tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--row-ms", "2"), "--row-ms and --rows need --simulated."),
        (("--simulated", "--rows", "0"), "--rows: Input should be greater than or equal to 1."),
    ],
)
def test_invalid_simulation_options_are_one_line(args: tuple[str, ...], said: str) -> None:
    done = run("serve", "--nats", "nats://127.0.0.1:1", *args)
    assert (done.returncode, done.stderr.strip()) == (2, said)
