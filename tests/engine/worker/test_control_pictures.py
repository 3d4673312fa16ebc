"""Control pictures in the worker: fetched from the broker, prepared again where a job resumes, or refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.fixtures.small_controls import build_controlnet, save_control
from engine.contract import ControlImage, JobFailed, JobFinished, JobStarted
from engine.models.families.stable_diffusion import StableDiffusion
from shared.init_image_jobs import draw_scene, hash_blobs
from shared.picture_files import encode_picture
from shared.worker_harness import (
    JOB,
    OTHER_JOB,
    SlowFamily,
    WorkerHarness,
    draw_hashes,
    make_job,
    picture_hashes,
    put_blobs,
    wait_until_midway,
)

BLOBS = hash_blobs(encode_picture(draw_scene()))
(SHA,) = BLOBS


def add_control(harness: WorkerHarness, data: Path) -> None:
    """Give the harness's model a control network of random weights."""
    family = harness.families["embedded"]
    assert isinstance(family, StableDiffusion)
    save_control(build_controlnet(family.pipeline), data / "controlnets" / "lines")
    family.conditioners[0].use_data_folder(data)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_with_a_control_picture_resumes_at_another_worker_with_the_same_bytes(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    await asyncio.to_thread(add_control, harness, tmp_path)
    control = ControlImage("lines", SHA, "canny", 0.8, stop=0.9)
    job = make_job(steps=30, guidance=3.0, bucket=2, controls=(control,))
    expected = await draw_hashes(harness, job, BLOBS)
    assert expected != await draw_hashes(harness, make_job(steps=30, guidance=3.0, bucket=2), {})
    await put_blobs(harness, BLOBS)
    families = harness.families
    harness.families = {"embedded": SlowFamily(harness.families["embedded"], 0.15)}  # pyright: ignore
    worker, task = await harness.start_worker()
    harness.families = families
    await harness.bot.dispatch(job)
    await wait_until_midway(worker)
    await harness.start_worker("two")
    worker.drain()
    await task
    results = await harness.collect_results()
    assert [value.worker for value in results if isinstance(value, JobStarted)] == ["one", "two"]
    assert isinstance(results[-1], JobFinished)
    assert picture_hashes(results) == expected


@pytest.mark.asyncio
async def test_a_missing_picture_or_network_fails_with_a_sentence(harness: WorkerHarness, tmp_path: Path) -> None:
    await asyncio.to_thread(add_control, harness, tmp_path)
    await harness.start_worker()
    await harness.bot.dispatch(make_job(controls=(ControlImage("lines", SHA),)))
    end = (await harness.collect_results(JOB))[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.reason) == ("worker", "A picture of this job was no longer at the broker.")
    await put_blobs(harness, BLOBS)
    await harness.bot.dispatch(make_job(OTHER_JOB, controls=(ControlImage("other", SHA),)))
    end = (await harness.collect_results(OTHER_JOB))[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.reason) == ("worker", "This worker has no control network called other.")
