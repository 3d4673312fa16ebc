"""Init images in the worker: fetched from the broker, kept across workers, and charged by the steps that ran."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.contract import (
    Branch,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobStarted,
    Ladder,
    PictureReady,
    decode,
)
from engine.worker.local_run import run_locally
from shared.init_image_jobs import Blobs, forward, half_mask, saved, scene
from shared.worker_harness import JOB, LONG, OTHER, Shop, a_job, midway, sha, until


async def put_blobs(shop: Shop, blobs: Blobs) -> None:
    for name, content in blobs.items():
        assert await shop.bot.put_blob(content) == name


async def draw_hashes(shop: Shop, job: Any, blobs: Blobs) -> list[str]:
    result = await asyncio.to_thread(run_locally, job, shop.loaded, blobs)
    return [sha(picture) for picture in result.pictures]


def picture_hashes(results: list[Any], kind: str = "image") -> list[str]:
    pictures = [value for value in results if isinstance(value, PictureReady) and value.kind == kind]
    return [value.sha256 for value in sorted(pictures, key=lambda value: value.image)]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_starts_from_an_init_image_and_a_branch_from_its_ladder(shop: Shop) -> None:
    start, blobs = forward([saved(scene())], 0.6, saved(half_mask()))
    job = a_job(steps=20, start=start, ladder=True)
    await put_blobs(shop, blobs)
    worker, _ = await shop.worker()
    await shop.bot.dispatch(job)
    results = await shop.results()
    assert isinstance(results[0], JobStarted)
    assert isinstance(results[-1], JobFinished)
    assert results[0].step == 8
    assert picture_hashes(results) == await draw_hashes(shop, job, blobs)
    await until(lambda: len(worker.active_runs) == 0)
    await until(lambda: not shop.lane._init_latents)
    [ladder_sha] = picture_hashes(results, "ladder")
    ladder = decode(await shop.bot.get_blob(ladder_sha, 10_000_000), Ladder)
    assert (ladder.of, [rung.step for rung in ladder.rungs if rung.latent]) == (20, [12, 16, 20])
    await shop.bot.dispatch(a_job(OTHER, steps=20, start=Branch(ladder_sha, 16)))
    branched = await shop.results(OTHER)
    assert isinstance(branched[-1], JobFinished)
    assert branched[0].step == 16


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_inpainting_job_resumes_at_another_worker_with_the_same_bytes(shop: Shop) -> None:
    start, blobs = forward([saved(scene())], 0.9, saved(half_mask()))
    job = a_job(steps=LONG, start=start, guidance=3.0, bucket=2)
    expected = await draw_hashes(shop, job, blobs)
    await put_blobs(shop, blobs)
    worker, task = await shop.worker()
    await shop.bot.dispatch(job)
    await midway(worker, job.task.first_step + 3)  # pyright: ignore
    await shop.worker("two")
    worker.drain()
    await task
    results = await shop.results()
    starts = [value for value in results if isinstance(value, JobStarted)]
    assert [value.worker for value in starts] == ["one", "two"]
    assert starts[0].step == LONG // 10 < starts[1].step
    assert picture_hashes(results) == expected


@pytest.mark.asyncio
async def test_a_missing_or_invalid_init_image_fails_with_a_sentence(shop: Shop) -> None:
    await shop.worker()
    start, _ = forward([saved(scene())], 0.5)
    await shop.bot.dispatch(a_job(start=start))
    end = (await shop.results())[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry, end.reason) == (
        "worker", True, "The init image was no longer at the broker.",
    )  # fmt: skip
    start, blobs = forward([b"no picture"], 0.5)
    await put_blobs(shop, blobs)
    await shop.bot.dispatch(a_job(OTHER, start=start))
    end = (await shop.results(OTHER))[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry, end.reason) == ("us", False, "The init image cannot be read.")


@pytest.mark.asyncio
async def test_a_cancelled_job_with_an_init_image_is_charged_for_its_steps(shop: Shop) -> None:
    start, blobs = forward([saved(scene())], 0.5)
    await put_blobs(shop, blobs)
    worker, _ = await shop.worker()
    await shop.bot.dispatch(a_job(steps=LONG, start=start))
    await midway(worker, LONG // 2 + 3)
    await shop.bot.cancel(JOB)
    end = (await shop.results())[-1]
    assert isinstance(end, JobCancelled)
    assert 3 <= end.steps < LONG // 2
    assert end.cost == pytest.approx(8.0 * end.steps / (LONG // 2))
