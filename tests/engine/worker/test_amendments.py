"""Amendments on a real worker: answered with a step, kept by the next worker, and the same picture from the recipe."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from engine.bus import BrokerUnreachable, Bus
from engine.contract import (
    AmendJob,
    AmendmentLog,
    AmendmentRequest,
    Change,
    Concept,
    DropImages,
    JobAmended,
    JobFinished,
    JobStarted,
    Recipe,
    SetConcepts,
    SetGuidance,
    SplitImage,
)
from engine.worker.worker import Worker
from shared.worker_harness import (
    JOB,
    SlowFamily,
    WorkerHarness,
    hash_local_pictures,
    make_job,
    picture_hashes,
    wait_until,
    wait_until_midway,
)

TERRIER = SetConcepts((Concept("terrier"),))
STEPS = 40


@pytest.fixture
def slow_harness(harness: WorkerHarness) -> WorkerHarness:
    harness.families = {name: SlowFamily(family) for name, family in harness.families.items()}  # pyright: ignore[reportAttributeAccessIssue]  (a stand-in for a slower device)
    return harness


async def send(harness: WorkerHarness, worker: Worker, *changes: Change, first_number: int = 1) -> None:
    requests = tuple(AmendmentRequest(number, change) for number, change in enumerate(changes, first_number))
    run = next(iter(worker.active_runs))
    await harness.bot.send_amendments("default", AmendJob(job=JOB, epoch=run.claim.epoch, requests=requests))


def list_answers(results: Any) -> list[tuple[int, bool, str]]:
    return [(each.number, each.step is not None, each.reason) for each in results if isinstance(each, JobAmended)]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_steered_job_ends_as_its_recipe_drawn_from_the_start(slow_harness: WorkerHarness) -> None:
    job = make_job(steps=STEPS, count=2, guidance=3.0, bucket=4)
    worker, _ = await slow_harness.start_worker()
    await slow_harness.bot.dispatch(job)
    run = await wait_until_midway(worker)
    await send(slow_harness, worker, TERRIER, SetGuidance(5.0), DropImages((1,)), DropImages((0,)))
    await wait_until(lambda: run.last_amendment == 4)
    await send(slow_harness, worker, SplitImage(0, (2,), 7), first_number=5)
    results = await slow_harness.collect_results()
    assert list_answers(results) == [
        (1, True, ""),
        (2, True, ""),
        (3, True, ""),
        (4, False, "One image has to stay."),
        (5, True, ""),
    ]
    finished = results[-1]
    assert isinstance(finished, JobFinished)
    assert [each.number for each in finished.amendments] == [1, 2, 3, 5]
    assert isinstance(job.task, Recipe)
    amended = replace(job, task=replace(job.task, amendments=finished.amendments))
    assert picture_hashes(results) == await hash_local_pictures(slow_harness, amended)


@pytest.mark.asyncio
async def test_a_repeated_change_is_answered_again_and_made_once(slow_harness: WorkerHarness) -> None:
    worker, _ = await slow_harness.start_worker()
    await slow_harness.bot.dispatch(make_job(steps=STEPS, guidance=3.0))
    run = await wait_until_midway(worker)
    for _ in range(3):
        await send(slow_harness, worker, TERRIER)
        await wait_until(lambda: run.last_amendment == 1 and run.is_amendment_log_stored)
    results = await slow_harness.collect_results()
    answers = [each for each in results if isinstance(each, JobAmended)]
    assert 1 <= len(answers) <= 3
    assert len({answer.step for answer in answers}) == 1
    assert len(results[-1].amendments) == 1


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_flood_of_repeats_is_answered_as_one(slow_harness: WorkerHarness) -> None:
    worker, _ = await slow_harness.start_worker()
    await slow_harness.bot.dispatch(make_job(steps=STEPS, guidance=3.0))
    run = await wait_until_midway(worker)
    async with run.amendment_lock:  # as while the texts of an earlier change are encoded
        for _ in range(20):
            await send(slow_harness, worker, TERRIER)
        await wait_until(lambda: run.newest_changes is not None)
    await send(slow_harness, worker, TERRIER)
    assert 1 <= len(list_answers(await slow_harness.collect_results())) <= 3


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_snapshot_is_stored_after_the_changes_that_it_holds(
    slow_harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_amendment_log = Bus.put_amendment_log
    tries = list[AmendmentLog]()

    async def fail_once(bus: Bus, amendment_log: AmendmentLog) -> None:
        tries.append(amendment_log)
        if len(tries) == 1:
            raise BrokerUnreachable("away")
        await put_amendment_log(bus, amendment_log)

    monkeypatch.setattr(Bus, "put_amendment_log", fail_once)
    job = make_job(steps=STEPS, guidance=3.0, bucket=4)
    first_worker, task = await slow_harness.start_worker("one")
    await slow_harness.bot.dispatch(job)
    run = await wait_until_midway(first_worker)
    await send(slow_harness, first_worker, TERRIER)
    await wait_until(lambda: bool(tries))
    step = run.steps_done[0]
    await wait_until(lambda: run.steps_done[0] > step + 1)
    await slow_harness.start_worker("two")
    first_worker.drain()
    await task
    finished = (results := await slow_harness.collect_results())[-1]
    assert [each.number for each in finished.amendments] == [1]
    assert isinstance(job.task, Recipe)
    amended = replace(job, task=replace(job.task, amendments=finished.amendments))
    assert picture_hashes(results) == await hash_local_pictures(slow_harness, amended)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_next_worker_goes_on_with_every_answered_change(slow_harness: WorkerHarness) -> None:
    job = make_job(steps=STEPS, guidance=3.0, bucket=4)
    first_worker, task = await slow_harness.start_worker("one")
    await slow_harness.bot.dispatch(job)
    run = await wait_until_midway(first_worker)
    await send(slow_harness, first_worker, TERRIER, SplitImage(0, (1,), 7))
    await wait_until(lambda: run.last_amendment == 2 and run.is_amendment_log_stored)
    second_worker, _ = await slow_harness.start_worker("two")
    first_worker.drain()
    await task
    second_run = await wait_until_midway(second_worker)
    assert second_run.last_amendment == 2
    results = await slow_harness.collect_results()
    assert [start.worker for start in results if isinstance(start, JobStarted)] == ["one", "two"]
    finished = results[-1]
    assert [each.number for each in finished.amendments] == [1, 2]
    assert isinstance(job.task, Recipe)
    amended = replace(job, task=replace(job.task, amendments=finished.amendments))
    assert picture_hashes(results) == await hash_local_pictures(slow_harness, amended)
