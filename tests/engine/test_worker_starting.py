"""A worker with pictures to begin with: fetched from the bucket, kept over a change of workers, charged as run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.alone import develop
from engine.job import Branch, Cancelled, Failed, Finished, Ladder, Picture, Started, decode
from tests.engine.beginnings import Blobs, forward, half_mask, saved, scene
from tests.engine.shop import JOB, LONG, OTHER, Shop, a_job, midway, sha, until


async def put(shop: Shop, blobs: Blobs) -> None:
    for name, content in blobs.items():
        assert await shop.bot.put_blob(content) == name


async def alone(shop: Shop, job: Any, blobs: Blobs) -> list[str]:
    found = await asyncio.to_thread(develop, job, shop.loaded, blobs)
    return [sha(picture) for picture in found.pictures]


def shas(said: list[Any], kind: str = "image") -> list[str]:
    pictures = [value for value in said if isinstance(value, Picture) and value.kind == kind]
    return [value.sha256 for value in sorted(pictures, key=lambda value: value.image)]


@pytest.mark.asyncio
async def test_it_begins_with_a_picture_and_a_branch_with_its_ladder(shop: Shop) -> None:
    start, blobs = forward([saved(scene())], 0.6, saved(half_mask()))
    job = a_job(steps=20, start=start, ladder=True)
    await put(shop, blobs)
    worker, _ = await shop.worker()
    await shop.bot.dispatch(job)
    said = await shop.results()
    assert isinstance(said[0], Started)
    assert isinstance(said[-1], Finished)
    assert said[0].step == 8
    assert shas(said) == await alone(shop, job, blobs)
    await until(lambda: len(worker.roster) == 0)
    await until(lambda: not shop.lane._under)
    [kept] = shas(said, "ladder")
    ladder = decode(await shop.bot.get_blob(kept, 10_000_000), Ladder)
    assert (ladder.of, [rung.step for rung in ladder.rungs if rung.latent]) == (20, [12, 16, 20])
    await shop.bot.dispatch(a_job(OTHER, steps=20, start=Branch(kept, 16)))
    branched = await shop.results(OTHER)
    assert isinstance(branched[-1], Finished)
    assert branched[0].step == 16


@pytest.mark.asyncio
async def test_a_masked_picture_goes_on_at_another_worker_with_the_same_bytes(shop: Shop) -> None:
    start, blobs = forward([saved(scene())], 0.9, saved(half_mask()))
    job = a_job(steps=LONG, start=start, guidance=3.0, bucket=2)
    expected = await alone(shop, job, blobs)
    await put(shop, blobs)
    worker, task = await shop.worker()
    await shop.bot.dispatch(job)
    await midway(worker, job.task.first + 3)  # pyright: ignore
    await shop.worker("two")
    worker.drain()
    await task
    said = await shop.results()
    starts = [value for value in said if isinstance(value, Started)]
    assert [value.worker for value in starts] == ["one", "two"]
    assert starts[0].step == LONG // 10 < starts[1].step
    assert shas(said) == expected


@pytest.mark.asyncio
async def test_what_is_not_there_or_no_picture_fails_with_a_sentence(shop: Shop) -> None:
    await shop.worker()
    start, _ = forward([saved(scene())], 0.5)
    await shop.bot.dispatch(a_job(start=start))
    end = (await shop.results())[-1]
    assert isinstance(end, Failed)
    assert (end.blame, end.retry, end.reason) == (
        "worker", True, "The init image was no longer at the broker.",
    )  # fmt: skip
    start, blobs = forward([b"no picture"], 0.5)
    await put(shop, blobs)
    await shop.bot.dispatch(a_job(OTHER, start=start))
    end = (await shop.results(OTHER))[-1]
    assert isinstance(end, Failed)
    assert (end.blame, end.retry, end.reason) == ("us", False, "The init image cannot be read.")


@pytest.mark.asyncio
async def test_it_is_charged_for_the_steps_that_were_run(shop: Shop) -> None:
    start, blobs = forward([saved(scene())], 0.5)
    await put(shop, blobs)
    worker, _ = await shop.worker()
    await shop.bot.dispatch(a_job(steps=LONG, start=start))
    await midway(worker, LONG // 2 + 3)
    await shop.bot.cancel(JOB)
    end = (await shop.results())[-1]
    assert isinstance(end, Cancelled)
    assert 3 <= end.steps < LONG // 2
    assert end.cost == pytest.approx(8.0 * end.steps / (LONG // 2))
