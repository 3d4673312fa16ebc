"""A Darkroom as the backend of another one's worker, through both of its foreign APIs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from pydantic import SecretStr

from bot.domain.feature import load_features
from bot.store import JobRecord
from bot.web.auth import terminal_key
from engine.contract import ImageToImage, InitImage, Job, JobCancelled, JobFinished, PictureReady, Recipe
from engine.process.backend_kinds import load_backend_kinds
from engine.process.settings import BackendSettings
from shared.backend_harness import open_bus, run_backend_worker
from shared.bus_harness import JOB, BusHarness, make_job
from shared.clock import wait_until

if TYPE_CHECKING:
    from shared.web_server import WebServer

KINDS = tuple(kind for kind in ("a1111", "openai") if kind in load_features() and kind in load_backend_kinds())
STEPS = 24
SEED = 7
JOBS = [JOB[:-1] + letter for letter in "ABC"]


@asynccontextmanager
async def stand_before(server: WebServer, kind: str, folder: Path) -> AsyncGenerator[BusHarness]:
    """Another Darkroom's queue, whose worker draws with `server`."""
    key = await asyncio.to_thread(terminal_key, server.settings.data)
    settings = BackendSettings(kind, server.url, SecretStr(key), size=64)
    async with open_bus(folder) as harness, run_backend_worker(harness, settings, folder, kind):
        await wait_until(lambda: kind in harness.bot.workers, 20)
        yield harness


def make_outer_job(harness: BusHarness, kind: str, job: str, **changes: Any) -> Job:
    model = harness.bot.workers[kind].models[0]
    assert model.name == "embedded"
    fields = {"model": model.name, "revision": model.revision, "dtype": model.dtype, "guidance": model.guidance}
    return make_job(job, **{"bucket": None, "steps": STEPS, "sampler": "euler", "seed": SEED, **fields, **changes})


async def load_inner_jobs(server: WebServer) -> list[JobRecord]:
    """The jobs of the Darkroom behind, the newest last."""
    _, jobs = await server.request_json("GET", "/api/jobs")
    return [await server.services.job_views.load_record(job) for job in sorted(each["id"] for each in jobs["jobs"])]


async def find_inner_recipe(server: WebServer) -> Recipe:
    task = (await load_inner_jobs(server))[-1].task
    assert isinstance(task, Recipe)
    return task


async def wait_for_inner_state(server: WebServer, state: str) -> None:
    async with asyncio.timeout(20):
        while (await load_inner_jobs(server))[-1].state != state:
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("kind", KINDS)
async def test_a_darkroom_draws_for_another(server: WebServer, tmp_path: Path, kind: str) -> None:
    async with stand_before(server, kind, tmp_path / "outer") as harness:
        await check_picture(server, harness, kind)
        await check_mask(server, harness, kind)
        await check_cancel(server, harness, kind)


async def check_picture(server: WebServer, harness: BusHarness, kind: str) -> None:
    frames: list[Any] = []

    async def collect_frames() -> None:
        async for frame in harness.bot.watch_frames():
            frames.append(frame)

    server.workers[0].speed = 0.06  # so that a client which asks twice a second sees it twice
    watch = asyncio.create_task(collect_frames())
    await harness.bot.request_previews(JOBS[0])
    await harness.bot.dispatch(make_outer_job(harness, kind, JOBS[0], negative="blur", ladder=True))
    results = await harness.collect_results(JOBS[0])
    watch.cancel()
    server.workers[0].speed = 0.01
    assert isinstance(results[-1], JobFinished), results
    pictures = {value.kind: value for value in results if isinstance(value, PictureReady)}
    assert sorted(pictures) == ["image", "ladder"]
    content = await harness.bot.get_blob(pictures["image"].sha256, pictures["image"].bytes)
    inner = await find_inner_recipe(server)
    assert (inner.seed, inner.steps, inner.sampler, inner.negative) == (SEED, STEPS, "euler", "blur")
    assert [concept.text for concept in inner.concepts] == ["a red apple"]
    painted = Image.open(BytesIO(server.workers[0].paint(inner, 0, inner.steps, "PNG"))).convert("RGB")
    assert Image.open(BytesIO(content)).tobytes() == painted.tobytes(), "not a pixel is lost"
    assert frames


async def check_mask(server: WebServer, harness: BusHarness, kind: str) -> None:
    start = BytesIO()
    mask = BytesIO()
    Image.new("RGB", (64, 64), "red").save(start, "PNG")
    Image.new("L", (64, 64), 255).save(mask, "PNG")
    start_sha, mask_sha = [await harness.bot.put_blob(each.getvalue()) for each in (start, mask)]
    edit = ImageToImage((InitImage(start_sha),), 0.5, mask_sha)
    await harness.bot.dispatch(make_outer_job(harness, kind, JOBS[1], start=edit))
    results = await harness.collect_results(JOBS[1])
    assert isinstance(results[-1], JobFinished), results
    inner_start = (await find_inner_recipe(server)).start
    assert isinstance(inner_start, ImageToImage)
    assert inner_start.strength == 0.5
    assert inner_start.mask is not None


async def check_cancel(server: WebServer, harness: BusHarness, kind: str) -> None:
    server.workers[0].step_gate.clear()
    await harness.bot.dispatch(make_outer_job(harness, kind, JOBS[2]))
    await wait_for_inner_state(server, "running")
    await harness.bot.cancel(JOBS[2])
    assert isinstance((await harness.collect_results(JOBS[2]))[-1], JobCancelled)
    server.workers[0].step_gate.set()
    await wait_for_inner_state(server, "cancelled")
