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

from engine.batching.engine import Engine
from engine.bus.embedded_broker import Broker
from engine.contract import JobFinished, JobStarted, PictureReady
from engine.output.decode_worker import DecodeWorker
from engine.sampling import TABLED
from engine.worker.local_run import run_locally
from engine.worker.simulated_model import NAME, SimulatedModel, build_calibration, forward_ms
from shared.worker_harness import JOB, LEASE, OTHER_JOB, WorkerHarness, hash_local_pictures, make_job, wait_until
from shared.worker_process import run_worker_command

# A killed worker's job is free after one lease, so the process gets the short lease of these tests.
SERVE = (
    "import sys\nfrom engine.bus import connection_base\nfrom engine.bus.subjects import BusLimits\n"
    f"connection_base.BusLimits = lambda: BusLimits(lease={LEASE})\n"
    "from engine.__main__ import _exit_now, main\n_exit_now(main(sys.argv[1:]))"
)


def build_job(job: str = JOB, **recipe: Any) -> Any:
    defaults: dict[str, Any] = {"model": NAME, "sampler": "ddpm", "steps": 200, "guidance": 3.0, "count": 2}
    return make_job(job, **{**defaults, "bucket": None, **recipe})


@pytest.fixture
def simulated_lane() -> Iterator[DecodeWorker]:
    decode_worker = DecodeWorker({NAME: SimulatedModel(row_ms=0.001)})
    yield decode_worker
    decode_worker.close()


@pytest_asyncio.fixture
async def simulators(tmp_path: Path, simulated_lane: DecodeWorker) -> AsyncIterator[WorkerHarness]:
    """A broker and the bot's end of the bus; the workers are processes."""
    async with Broker(tmp_path / "nats") as broker:
        harness = WorkerHarness(broker, {NAME: SimulatedModel(row_ms=0.001)}, simulated_lane, LEASE)
        harness.bot = await harness.connect()
        await harness.bot.watch_workers()
        yield harness
        await harness.bot.close()


async def start_worker(harness: WorkerHarness, name: str, *options: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVE,
        "serve",
        "--nats",
        harness.broker.url,
        "--name",
        name,
        "--simulated",
        *options,
        env={**os.environ, "DARKROOM_NATS_TOKEN": harness.broker.token},
    )
    await wait_until(lambda: name in harness.bot.workers or process.returncode is not None, 120)
    assert process.returncode is None
    return process


@pytest.mark.parametrize(
    ("row_ms", "rows", "expected_limit"), [(0.1, 32, 32), (0.5, 32, 32), (0.5, 16, 16), (2.0, 32, 8)]
)
def test_the_batch_limit_equals_what_a_calibration_finds(row_ms: float, rows: int, expected_limit: int) -> None:
    assert build_calibration(row_ms, rows).rows == expected_limit


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_of_a_killed_worker_ends_elsewhere_with_the_same_bytes(simulators: WorkerHarness) -> None:
    job = build_job()
    expected = await hash_local_pictures(simulators, job)
    first = await start_worker(simulators, "first", "--row-ms", "5")  # more than a hundred steps of 21 ms
    presence = simulators.bot.workers["first"]
    assert (presence.rows, [profile.name for profile in presence.models], presence.models[0].loaded) == (
        8,
        [NAME],
        True,
    )
    await simulators.bot.dispatch(job)
    assert (await simulators.wait_for_start()).worker == "first"
    async with asyncio.timeout(60):
        while not (snapshots := await simulators.bot.get_snapshots(JOB)):
            await asyncio.sleep(0.02)
    first.kill()
    await first.wait()
    second = await start_worker(simulators, "second", "--row-ms", "0.1")
    results = await simulators.collect_results()
    [start] = [value for value in results if isinstance(value, JobStarted)]
    assert start.worker == "second"
    assert 0 < snapshots[0].next_step <= start.step < 200
    assert isinstance(results[-1], JobFinished)
    assert [value.sha256 for value in results if isinstance(value, PictureReady)] == expected
    second.terminate()
    assert await asyncio.wait_for(second.wait(), 30) == 0


@pytest.mark.parametrize("sampler", SimulatedModel.samplers)
def test_a_job_draws_the_same_latents_beside_other_jobs(sampler: str) -> None:
    families = {NAME: SimulatedModel(row_ms=0.001)}
    job = build_job(sampler=sampler, steps=8)
    other_job = build_job(OTHER_JOB, sampler=sampler, steps=8, seed=99, count=3)
    shared_engine = Engine(families)
    shared_engine.add(job)
    shared_engine.add(other_job)
    lone_engine = Engine(families)
    lone_engine.add(job)
    for _ in range(5):
        shared_engine.step()
        lone_engine.step()
    assert shared_engine.take_snapshots(JOB, 1) == lone_engine.take_snapshots(JOB, 1)


def test_seed_and_steps_decide_the_picture() -> None:
    families = {NAME: SimulatedModel(row_ms=0.001)}
    common_fields: dict[str, Any] = {"steps": 8, "count": 1}
    same_pictures = [run_locally(build_job(**common_fields), families).pictures for _ in range(2)]
    changes: list[dict[str, Any]] = [{"seed": 8}, {"steps": 9}]
    other_pictures = [run_locally(build_job(**common_fields | change), families).pictures for change in changes]
    assert same_pictures[0] == same_pictures[1]
    assert all(other != same_pictures[0] for other in other_pictures)
    assert len(SimulatedModel.samplers) == len(TABLED)


def test_a_forward_takes_the_time_that_the_calibration_announces() -> None:
    family = SimulatedModel(row_ms=2.0)
    calibration = build_calibration(2.0, 24)
    x = torch.zeros(10, 4, 8, 8)
    texts = (torch.zeros(10, 4),)
    started_at = time.monotonic()
    family.denoise(x, torch.full((10,), 500.0), texts, "float32")
    assert time.monotonic() - started_at >= 0.021
    assert calibration.bucket_ms == {size: forward_ms(size, 2.0) for size in (1, 2, 4, 8, 16, 24)}
    assert (calibration.rows, calibration.row_ms) == (8, pytest.approx(17 / 8))


def test_a_picture_survives_encode_and_decode() -> None:
    family = SimulatedModel(row_ms=1.0)
    picture = family.decode(torch.linspace(-1.5, 1.5, 256).view(4, 8, 8))
    assert picture.size == (64, 64)
    assert family.decode(family.encode_image(picture)).tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--row-ms", "2"), "--row-ms and --rows need --simulated."),
        (("--simulated", "--rows", "0"), "--rows is not valid: input should be greater than or equal to 1."),
    ],
)
def test_invalid_simulation_options_are_one_line(args: tuple[str, ...], message: str) -> None:
    completed = run_worker_command("serve", "--nats", "nats://127.0.0.1:1", *args)
    assert (completed.returncode, completed.stderr.strip()) == (2, message)
