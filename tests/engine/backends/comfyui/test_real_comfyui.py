"""The worker before a real ComfyUI, where `DARKROOM_TEST_COMFYUI` has its address (a server with any checkpoint).

Elsewhere the stand-in speaks for it. No skip says so: in CI a skipped test is a failure.
"""

from __future__ import annotations

import asyncio
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine.contract import ImageToImage, InitImage, JobCancelled, JobFinished, PictureReady
from engine.process.settings import BackendSettings
from shared.backend_harness import open_bus, run_backend_worker
from shared.bus_harness import JOB, BusHarness, make_job
from shared.clock import wait_until

ADDRESS = os.environ.get("DARKROOM_TEST_COMFYUI", "")
JOBS = [JOB[:-1] + letter for letter in "ABCD"]


if ADDRESS:

    @pytest.mark.asyncio
    async def test_it_draws_shows_edits_and_stops(tmp_path: Path) -> None:
        settings = BackendSettings(kind="comfyui", url=ADDRESS, size=64)
        async with open_bus(tmp_path) as harness, run_backend_worker(harness, settings, tmp_path) as worker:
            await wait_until(lambda: "comfy" in harness.bot.workers)
            frames: list[Any] = []
            watch = asyncio.create_task(_collect_frames(harness, frames))
            picture = await _draw(harness, JOBS[0], steps=6, count=2, ladder=True)
            assert picture.size == (64, 64)
            assert frames, "start it with --preview-method auto or latent2rgb"
            start_sha = await _put(harness, Image.new("RGB", (90, 64), "red"))
            mask_sha = await _put(harness, Image.new("L", (90, 64), 255))
            await _draw(harness, JOBS[1], steps=4, start=ImageToImage((InitImage(start_sha),), 0.5))
            await _draw(harness, JOBS[2], steps=4, start=ImageToImage((InitImage(start_sha),), 0.9, mask_sha))
            await harness.bot.dispatch(_make_job(harness, JOBS[3], steps=1000))
            await wait_until(lambda: any(run.image_evaluations for run in worker.active_runs))
            await harness.bot.cancel(JOBS[3])
            end = (await harness.collect_results(JOBS[3]))[-1]
            assert isinstance(end, JobCancelled)
            assert 0 < end.steps < 1000
            watch.cancel()


async def _collect_frames(harness: BusHarness, frames: list[Any]) -> None:
    for job in JOBS:
        await harness.bot.request_previews(job)
    async for frame in harness.bot.watch_frames():
        frames.append(frame)


def _make_job(harness: BusHarness, job: str, **changes: Any) -> Any:
    model = harness.bot.workers["comfy"].models[0]
    fields: dict[str, Any] = {
        "model": model.name,
        "revision": model.revision,
        "sampler": model.sampler,
        "dtype": model.dtype,
        "bucket": None,
        "guidance": 5.0,
    }
    return make_job(job, **{**fields, **changes})


async def _draw(harness: BusHarness, job: str, **changes: Any) -> Image.Image:
    await harness.bot.request_previews(job)
    await harness.bot.dispatch(_make_job(harness, job, **changes))
    results = await harness.collect_results(job)
    assert isinstance(results[-1], JobFinished), results
    picture = next(value for value in results if isinstance(value, PictureReady))
    return Image.open(BytesIO(await harness.bot.get_blob(picture.sha256, picture.bytes)))


async def _put(harness: BusHarness, picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return await harness.bot.put_blob(buffer.getvalue())
