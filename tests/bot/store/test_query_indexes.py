"""Frequent queries use indexes, however much data there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest

from benchmarks.queue.job_picking import seed_queue
from bot.domain.dto import Member
from bot.policy.limits import DAY_SECONDS
from bot.policy.rules.catalogue import UsageScope
from bot.store import NewJob, PickRequest, Store
from bot.store.deletion import deletion_steps
from bot.store.fairness.ledger import Ledger
from bot.store.jobs import queries
from shared.query_plans import StatementRecorder, explain_statements, list_plans
from shared.stored_jobs import make_new_job


def draft(user: str, channel: str, **changes: Any) -> NewJob:
    new_job = make_new_job(created_at=1.0, **changes)
    return replace(new_job, member=Member(user, user, "g", channel=channel), cost=1.0, deadline=2.0)


async def fill_queue(store: Store) -> None:
    """Queues ten thousand jobs of a thousand members."""
    await store.write(seed_queue, draft("seed", "1"), 10_000, 1000)


@pytest.mark.asyncio
async def test_pick_and_admission_use_indexes_however_long_the_queue_is(store):
    await fill_queue(store)
    with StatementRecorder(store.database.writer, "SELECT", "UPDATE") as pick_recorder:
        assert await store.pick_job(PickRequest("default", ("embedded",), member_limit=10**6), 1000, 1.0, 1001.0)
    with StatementRecorder(store.database.writer, "SELECT", "UPDATE") as admit_recorder:
        await store.admit_jobs([draft("ann", "1")], "key", read_all_limits, 1.0)
    assert 8 <= len(pick_recorder) <= 20
    assert 8 <= len(admit_recorder) <= 30
    for plan in await store.query(explain_statements, pick_recorder + admit_recorder):
        assert not [table for table in ("jobs", "accounts", "moves", "places") if f"Seq Scan on {table}" in plan], plan
        assert not [table for table in ("jobs", "accounts", "moves", "places") if f"SCAN {table}" in plan], plan
    assert not [
        plan for plan in await store.query(explain_statements, pick_recorder) if "TEMP B-TREE" in plan or "Sort" in plan
    ]


def read_all_limits(drafts: Sequence[NewJob], ledger: Ledger) -> Sequence[NewJob]:
    """Reads everything that any rule can need."""
    ledger.load_rules()
    for usage_scope in get_args(UsageScope):
        ledger.get_usage(usage_scope)
        ledger.get_spending(usage_scope, DAY_SECONDS)
    return drafts


@pytest.mark.asyncio
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_the_newest_jobs_of_a_member_and_of_a_channel_use_indexes(store):
    drafts = [
        draft("ann", "1"),
        draft("bob", "2"),
        draft("ann", "2"),
        draft("bob", "1", private=True),
        draft("bob", "1"),
    ]
    await store.admit_jobs(drafts, None, lambda requests, _ledger: requests, 1.0)
    first, _, third, _, last = (one.id for one in drafts)
    assert [one.id for one in await store.query(queries.list_nearby_jobs, "ann", "g", "1", 9)] == [last, third, first]
    assert [one.id for one in await store.query(queries.list_nearby_jobs, "ann", "g", "1", 2)] == [last, third]
    query_plans = await list_plans(store, queries.list_nearby_jobs, "ann", "g", "1", 2)
    assert len(query_plans) == 2
    assert not [plan for plan in query_plans if "SCAN" in plan or "TEMP B-TREE" in plan]


@pytest.mark.asyncio
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_leftovers_are_found_by_the_index_of_deleted_jobs(store):
    await store.admit_jobs([draft("ann", "1") for _ in range(3)], None, lambda requests, _ledger: requests, 1.0)
    (plan_without_guild,), (one,) = (
        await list_plans(store, deletion_steps.list_leftover_files),
        await list_plans(store, deletion_steps.list_leftover_files, ["0" * 26]),
    )
    assert "SCAN pictures" not in plan_without_guild + one
    assert "SCAN jobs" not in one
    assert "INDEX jobs_deleted" in plan_without_guild
