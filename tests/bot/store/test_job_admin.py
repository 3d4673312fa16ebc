"""`darkroom jobs` in SQL and the counts for metrics, on both databases."""

from __future__ import annotations

import pytest

from bot.domain.dto import Destination, Member
from bot.store import NewJob, PickRequest
from bot.store.jobs import queries
from bot.store.transitions import job_admin
from bot.store.transitions.job_admin import JobFilter
from shared.sample_views import make_recipe

IDS = [f"01JZ000000000000000000000{number}" for number in range(4)]


async def admit_job(store, number: int, *, guild: str = "local", tier: str = "standard") -> None:
    draft = NewJob(
        IDS[number],
        "imagine",
        "a lamp",
        (),
        make_recipe(),
        Member(f"{guild}:ann", "Ann", guild, tier),
        Destination("web", {}),
        "default",
        "embedded",
        8.0,
        100.0 + number,
        9000.0,
    )
    await store.admit_jobs([draft], None, lambda drafts, _ledger: drafts, 100.0 + number)


@pytest.mark.asyncio
async def test_jobs_are_found_and_counted(store):
    for number in range(3):
        await admit_job(
            store, number, guild="local" if number else "discord:7", tier="relaxed" if number else "standard"
        )
    dispatched = await store.pick_job(PickRequest("default", ["embedded"], 3), 32, 1.0, 120.0)
    assert await store.query(job_admin.list_job_ids, IDS[0][:-1], 2) == [IDS[2], IDS[1]]
    assert await store.query(job_admin.list_job_ids, "01%", 2) == []
    assert [one.id for one in await store.query(job_admin.list_jobs, JobFilter())] == IDS[2::-1]
    assert [one.id for one in await store.query(job_admin.list_jobs, JobFilter(oldest_first=True, limit=1))] == [IDS[0]]
    assert [one.id for one in await store.query(job_admin.list_jobs, JobFilter(states=("sent",)))] == [
        dispatched.record.id
    ]
    assert [one.id for one in await store.query(job_admin.list_jobs, JobFilter(guild="discord:7"))] == [IDS[0]]
    assert [one.id for one in await store.query(job_admin.list_jobs, JobFilter(member="local:ann"))] == [IDS[2], IDS[1]]
    groups = await store.query(queries.count_open_jobs)
    assert sum(one.jobs for one in groups) == 3
    assert sum(one.rows for one in groups) == 24
    assert {one.state for one in groups} == {"queued", "sent"}
    assert min(one.oldest_created for one in groups) == 100.0


@pytest.mark.asyncio
async def test_the_audit_shows_each_change_by_the_operator_once(store):
    for number in range(3):
        await admit_job(store, number)
    for _ in range(2):
        await store.pick_job(PickRequest("default", ["embedded"], 3), 32, 1.0, 120.0)
    start = await store.query(job_admin.read_last_line)
    assert await store.query(job_admin.list_external_changes, start) == (start, {})
    assert (await store.write(job_admin.cancel_job, IDS[2], 130.0)).state == "cancelled"
    cancelled_job = await store.write(job_admin.cancel_job, IDS[1], 131.0)
    assert (cancelled_job.state, cancelled_job.cancelling) == ("sent", True)
    assert await store.write(job_admin.requeue_job, IDS[1], 132.0) is None
    assert await store.write(job_admin.requeue_job, IDS[2], 133.0) is None
    assert await store.write(job_admin.requeue_job, "01JZ000000000000000000000X", 133.0) is None
    requeued_twice = await store.write(job_admin.requeue_job, IDS[0], 134.0)
    assert (requeued_twice.record.state, requeued_twice.record.attempt, requeued_twice.record.worker) == (
        "queued",
        2,
        "",
    )
    assert requeued_twice.record.attempts_without_progress == 0
    last, changes = await store.query(job_admin.list_external_changes, start)
    assert last > start
    assert [(one.job, one.target, one.reason) for one in changes.values()] == [
        (IDS[2], "cancelled", job_admin.CANCEL_NOTE),
        (IDS[1], "sent", job_admin.CANCEL_NOTE),
        (IDS[0], "queued", job_admin.REQUEUE_NOTE),
    ]
    assert [one.source for one in await store.query(queries.list_audit, [IDS[2]])][-1] == "queued"
    picked_job = await store.pick_job(PickRequest("default", ["embedded"], 3), 32, 1.0, 140.0)
    assert (picked_job.record.id, picked_job.record.attempt) == (IDS[0], 2)
    assert picked_job.record.billed == 8.0
