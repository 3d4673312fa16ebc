"""Init images in the worker: fetched from the broker, kept across workers, and charged by the steps that ran."""

from __future__ import annotations

import pytest

from engine.contract import Branch, JobCancelled, JobFailed, JobFinished, JobStarted, Ladder, decode
from shared.init_image_jobs import draw_half_mask, draw_scene, make_image_to_image
from shared.picture_files import encode_picture
from shared.worker_harness import (
    JOB,
    LONG_STEPS,
    OTHER_JOB,
    SlowFamily,
    WorkerHarness,
    draw_hashes,
    make_job,
    picture_hashes,
    put_blobs,
    wait_until,
    wait_until_midway,
)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_starts_from_an_init_image_and_a_branch_from_its_ladder(harness: WorkerHarness) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.6, encode_picture(draw_half_mask()))
    job = make_job(steps=20, start=start, ladder=True)
    await put_blobs(harness, blobs)
    worker, _ = await harness.start_worker()
    await harness.bot.dispatch(job)
    results = await harness.collect_results()
    assert isinstance(results[0], JobStarted)
    assert isinstance(results[-1], JobFinished)
    assert results[0].step == 8
    assert picture_hashes(results) == await draw_hashes(harness, job, blobs)
    await wait_until(lambda: len(worker.active_runs) == 0)
    await wait_until(lambda: not harness.decode_worker._init_latents)
    [ladder_sha] = picture_hashes(results, "ladder")
    ladder = decode(await harness.bot.get_blob(ladder_sha, 10_000_000), Ladder)
    assert (ladder.total_steps, [keyframe.step for keyframe in ladder.keyframes if keyframe.latent]) == (
        20,
        [12, 16, 20],
    )
    await harness.bot.dispatch(make_job(OTHER_JOB, steps=20, start=Branch(ladder_sha, 16)))
    branch_results = await harness.collect_results(OTHER_JOB)
    assert isinstance(branch_results[-1], JobFinished)
    assert branch_results[0].step == 16


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_inpainting_job_resumes_at_another_worker_with_the_same_bytes(harness: WorkerHarness) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.9, encode_picture(draw_half_mask()))
    job = make_job(steps=40, start=start, guidance=3.0, bucket=2)
    expected = await draw_hashes(harness, job, blobs)
    await put_blobs(harness, blobs)
    families = harness.families
    harness.families = {"embedded": SlowFamily(harness.families["embedded"], 0.15)}  # pyright: ignore
    worker, task = await harness.start_worker()
    harness.families = families
    await harness.bot.dispatch(job)
    await wait_until_midway(worker, job.task.first_step + 3)  # pyright: ignore
    await harness.start_worker("two")
    worker.drain()
    await task
    results = await harness.collect_results()
    start_messages = [value for value in results if isinstance(value, JobStarted)]
    assert [value.worker for value in start_messages] == ["one", "two"]
    assert start_messages[0].step == 4 < start_messages[1].step
    assert picture_hashes(results) == expected


@pytest.mark.asyncio
async def test_a_missing_or_invalid_init_image_fails_with_a_sentence(harness: WorkerHarness) -> None:
    await harness.start_worker()
    start, _ = make_image_to_image([encode_picture(draw_scene())], 0.5)
    await harness.bot.dispatch(make_job(start=start))
    end = (await harness.collect_results())[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry, end.reason) == ("worker", True, "The init image was no longer at the broker.")
    start, blobs = make_image_to_image([b"no picture"], 0.5)
    await put_blobs(harness, blobs)
    await harness.bot.dispatch(make_job(OTHER_JOB, start=start))
    end = (await harness.collect_results(OTHER_JOB))[-1]
    assert isinstance(end, JobFailed)
    assert (end.blame, end.retry, end.reason) == ("us", False, "The init image cannot be read.")


@pytest.mark.asyncio
async def test_a_cancelled_job_with_an_init_image_is_charged_for_its_steps(harness: WorkerHarness) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.5)
    await put_blobs(harness, blobs)
    worker, _ = await harness.start_worker()
    await harness.bot.dispatch(make_job(steps=LONG_STEPS, start=start))
    await wait_until_midway(worker, LONG_STEPS // 2 + 3)
    await harness.bot.cancel(JOB)
    end = (await harness.collect_results())[-1]
    assert isinstance(end, JobCancelled)
    assert 3 <= end.steps < LONG_STEPS // 2
    assert end.cost == pytest.approx(8.0 * end.steps / (LONG_STEPS // 2))
