"""Changes of running jobs in SQL: asked for once, answered once in any order, and settled when the job ends."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from bot.domain.dto import Member
from bot.store import Store
from bot.store.schema.tables import amendments
from bot.store.transitions.amendments import (
    ENDED_TEXT,
    NewAmendment,
    answer_amendment,
    ask_for_amendments,
    list_amendments,
    list_jobs_with_waiting,
    list_waiting,
)
from bot.store.transitions.job_admin import fail_unreadable_jobs
from engine.contract import Change, Concept, DropImages, JobAmended, ModelProfile, Recipe, SetConcepts, SplitImage
from shared.stored_jobs import admit_job, make_new_job

ANN = Member("local:ann", "Ann", "local")
DROP = DropImages((1,))
SPLIT = SplitImage(0, (1,), 9)
WORDS = SetConcepts((Concept("a lamp, blue"),))
MODEL = ModelProfile(
    name="embedded",
    revision="1",
    dtype="float32",
    size=64,
    multiple=8,
    max_pixels=128 * 128,
    tokens=24,
    steps=40,
    sampler="ddim",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=3.0,
    row_ms=1.0,
    encode_ms=1.0,
    decode_ms=1.0,
)


async def ask(store: Store, job: str, *changes: Change, key: str | None = None) -> list[int]:
    new = [NewAmendment(change, "a change", 1.0) for change in changes]
    asked = await store.write(ask_for_amendments, job, ANN, ANN, key, lambda *_: new, 5.0)
    assert asked is not None
    return [each.number for each in asked.requested]


async def answer(store: Store, job: str, number: int, step: int | None, epoch: int = 3) -> bool:
    message = JobAmended(job=job, epoch=epoch, number=number, step=step, reason="" if step is not None else "No.")
    return await store.write(answer_amendment, message, MODEL) is not None


async def load(store: Store, job: str) -> tuple[Any, list[tuple[int, str, int | None]]]:
    record = await store.get_job(job)
    known = await store.query(list_amendments, job)
    return record, [(each.number, each.state, each.step) for each in known]


async def start_running(store: Store) -> str:
    job = await admit_job(store, make_new_job())
    assert await store.start_job(job, 3, "one", 0, 1.0)
    return job


@pytest.mark.asyncio
async def test_answers_count_once_in_any_order_and_a_stale_one_never(store: Store) -> None:
    job = await start_running(store)
    assert await ask(store, job, DROP, SPLIT, WORDS, key="k") == await ask(store, job, key="k") == [1, 2, 3]
    assert {each.key for each in await store.query(list_amendments, job)} == {"k"}
    assert (await load(store, job))[0].cost == pytest.approx(4.0 + 3.0)
    assert not await answer(store, job, 1, 7, epoch=2)
    assert not await answer(store, job, 9, 7)
    with pytest.raises(ValueError, match="only into free places"):
        await answer(store, job, 2, 8)  # the drop before it is not answered yet
    assert await answer(store, job, 3, 9)
    assert await answer(store, job, 1, 7)
    assert await answer(store, job, 2, 8)
    assert not await answer(store, job, 2, None)
    record, states = await load(store, job)
    assert states == [(1, "made", 7), (2, "made", 8), (3, "made", 9)]
    assert [(each.number, each.step) for each in record.task.amendments] == [(1, 7), (2, 8), (3, 9)]
    assert record.final_images == (0, 1, 2, 3)
    assert await store.query(list_jobs_with_waiting) == []


@pytest.mark.asyncio
async def test_a_job_that_ends_refuses_what_waits_and_one_that_goes_on_keeps_it(store: Store) -> None:
    job = await start_running(store)
    await ask(store, job, WORDS, DROP)
    assert await answer(store, job, 1, None)
    assert await store.requeue_job(job, 2.0, step=4, audit_note="lost")
    assert await store.query(list_jobs_with_waiting) == [job]
    assert [each.number for each in (await store.query(list_waiting, [job]))[job]] == [2]
    assert await store.end_job("cancel", job, 3.0, 0.5)
    record, states = await load(store, job)
    assert states == [(1, "refused", None), (2, "refused", None)]
    assert [each.reason for each in await store.query(list_amendments, job)] == ["No.", ENDED_TEXT]
    assert isinstance(record.task, Recipe)
    assert record.task.amendments == ()
    assert record.charged == pytest.approx(0.5)
    assert await store.query(list_waiting, [job]) == {}


@pytest.mark.asyncio
async def test_a_share_of_the_cost_is_one_of_what_held_and_not_of_what_waits(store: Store) -> None:
    job = await start_running(store)
    await ask(store, job, SPLIT)
    assert await store.requeue_job(job, 2.0, step=10, audit_note="lost")
    record, transition = await store.request_cancel(job, 3.0)
    assert transition is not None
    assert record is not None
    assert record.charged == pytest.approx(4.0 * 10 / record.steps)


@pytest.mark.asyncio
async def test_a_job_with_a_change_of_a_newer_version_fails_without_a_charge(store: Store) -> None:
    job = await start_running(store)
    other = await start_running(store)
    await ask(store, job, WORDS)
    await ask(store, other, WORDS)
    unknown = update(amendments).where(amendments.c.job == job).values(change={"kind": "unheard-of"})
    await store.write(lambda connection: connection.execute(unknown) and None)
    assert await store.write(fail_unreadable_jobs, 6.0) == [job]
    record = await store.get_job(job)
    assert record is not None
    assert (record.state, record.charged) == ("failed", 0.0)
    assert await store.query(list_jobs_with_waiting) == [other]
