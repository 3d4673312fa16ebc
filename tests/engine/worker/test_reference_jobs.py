"""Reference pictures in the worker: encoded again where a job resumes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.fixtures.small_controls import save_small_ip_adapter
from engine.contract import JobFailed, JobFinished, JobStarted, ReferenceImage
from engine.models import add_conditioners
from engine.models.families.stable_diffusion import StableDiffusion
from shared.init_image_jobs import draw_scene, hash_blobs
from shared.picture_files import encode_picture
from shared.worker_harness import (
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


def add_adapter(harness: WorkerHarness, data: Path) -> None:
    """Give the harness's model a reference adapter of random weights."""
    family = harness.families["embedded"]
    assert isinstance(family, StableDiffusion)
    save_small_ip_adapter(data / "ip-adapters" / "face", family.pipeline.unet, is_plus=True)
    add_conditioners(family)
    family.use_data_folder(data)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_with_a_reference_resumes_at_another_worker_with_the_same_bytes(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    await asyncio.to_thread(add_adapter, harness, tmp_path)
    job = make_job(steps=30, guidance=3.0, bucket=2, references=(ReferenceImage("face", SHA, 0.9),))
    expected = await draw_hashes(harness, job, BLOBS)
    assert expected != await draw_hashes(harness, make_job(steps=30, guidance=3.0, bucket=2), {})
    await put_blobs(harness, BLOBS)
    families = harness.families
    slow_family = cast(Any, SlowFamily(harness.families["embedded"], 0.15))
    harness.families = {"embedded": slow_family}
    worker, task = await harness.start_worker()
    harness.families = families
    await harness.bot.dispatch(job)
    await wait_until_midway(worker)
    await harness.start_worker("two")
    worker.drain()
    await task
    results = await harness.collect_results()
    assert [value.worker for value in results if isinstance(value, JobStarted)] == ["one", "two"]
    assert not any(isinstance(value, JobFailed) for value in results)
    assert isinstance(results[-1], JobFinished)
    assert picture_hashes(results) == expected
