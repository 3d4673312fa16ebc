"""No member waits for ever: overdue members get turns, and alternating models are not loaded for every job."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, select
from sqlalchemy.pool import StaticPool

from bot.domain.dto import Member
from bot.policy.fair_queue import MAX_BYPASS_SECONDS, QueueBypass
from bot.store import PickRequest, Transition
from bot.store.schema.tables import accounts, metadata
from bot.store.transitions import job_transitions
from shared.stored_jobs import make_new_job

ROWS = 8  # of each job
SECONDS = 10.0  # of each job
PATIENCE = 20.0
EVERY = 3


@contextmanager
def database() -> Iterator[Connection]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


def add_job(connection: Connection, user: str, now: float, tier: str = "standard", **changes: Any) -> str:
    member = Member(user, user, changes.pop("guild", "g"), tier)
    weight = 0.001 if tier == "meagre" else 1.0
    new_job = replace(make_new_job(created_at=now), member=member, cost=SECONDS, weight=weight)
    (record,) = job_transitions.insert_jobs(connection, [replace(new_job, **changes)], None)
    return record.id


def pick_job(
    connection: Connection, queue_bypass: QueueBypass, now: float, *, overbook: float = 1.0, **changes: Any
) -> Transition | None:
    request = PickRequest("default", changes.pop("models", ("embedded",)), 1000, bypass=queue_bypass, **changes)
    return job_transitions.pick_job(connection, request, ROWS, overbook, now)


def finish_job(connection: Connection, job: str, now: float) -> None:
    job_transitions.end_job(connection, "finish", job, now, SECONDS)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(1, 2), min_size=1, max_size=4), st.booleans())
def test_every_wait_is_bounded_whatever_the_weight_and_the_newcomers(waiting_members, stream, has_newcomers):
    """Members of a tier of weight 0.001 wait while others keep coming. Each is dispatched within `EVERY` × (k + 1)
    dispatches after becoming overdue, where k members have waited longer. Newcomers cannot fill the overbooked rows.
    """
    queue_bypass = QueueBypass(patience=PATIENCE, overdue_interval=EVERY)
    with database() as connection:
        waiting_by_job = {add_job(connection, f"poor{n}", 0.0, "meagre"): n for n in range(waiting_members)}
        changes = [
            add_job(connection, f"poor{n}", 0.0, "meagre") for n in range(waiting_members)
        ]  # a second job each, for later
        now = 0.0
        arrivals = itertools.cycle(stream)
        running_jobs = list[tuple[float, str]]()
        late_dispatches = 0
        dispatched_at: dict[str, int] = {}
        for number in itertools.count():
            for one in range(next(arrivals)):
                add_job(connection, f"new{number}.{one}" if has_newcomers else f"rich{one}", now)
            while picked_job := pick_job(connection, queue_bypass, now):
                running_jobs.append((now + SECONDS, picked_job.record.id))
                late_dispatches += now > PATIENCE
                if picked_job.record.id in waiting_by_job:
                    dispatched_at[picked_job.record.id] = late_dispatches
            if len(dispatched_at) == len(waiting_by_job):
                break
            now += SECONDS / 2
            for ends_at, job in [one for one in running_jobs if one[0] <= now]:
                finish_job(connection, job, now)
                running_jobs.remove((ends_at, job))
            assert late_dispatches <= EVERY * (waiting_members + 1), "nobody may wait longer"
        for job, dispatch_number in dispatched_at.items():
            assert dispatch_number <= EVERY * (waiting_by_job[job] + 1)
        assert changes


def test_a_served_member_waits_again_and_a_flood_gains_nothing():
    queue_bypass = QueueBypass(patience=PATIENCE, overdue_interval=2)
    with database() as connection:
        for _ in range(20):
            add_job(connection, "flood", 0.0)
        add_job(connection, "calm", 30.0)
        picked_order = []
        for number in range(6):
            picked_job = pick_job(connection, queue_bypass, 100.0 + number)
            assert picked_job is not None
            picked_order.append(picked_job.record.member)
            finish_job(connection, picked_job.record.id, 100.0 + number)
        since_by_path = {row.path: row.since for row in connection.execute(select(accounts.c.path, accounts.c.since))}
    assert picked_order[:2] == ["calm", "flood"] or picked_order[:2] == ["flood", "calm"]
    assert since_by_path["default/standard/g/flood"] == 105.0


def test_an_overdue_member_who_may_not_run_delays_no_one():
    queue_bypass = QueueBypass(patience=PATIENCE, overdue_interval=1)
    with database() as connection:
        add_job(connection, "other", 0.0, model="elsewhere")
        add_job(connection, "capped", 1.0, running_everywhere=0)
        add_job(connection, "fine", 2.0)
        picked_job = pick_job(connection, queue_bypass, 100.0)
        assert picked_job is not None
        assert picked_job.record.member == "fine"


def count_loads(prefers_loaded: bool, jobs: list[str]) -> tuple[int, float]:
    """Simulates a device that holds one model, and jobs of two members. Returns the number of loads, and the longest
    time for which a job that was next was bypassed.
    """
    # of a load
    queue_bypass = QueueBypass(patience=10.0**6)
    load_seconds = 3.0
    with database() as connection:
        for number, model in enumerate(jobs):
            add_job(connection, f"of {model}", 0.0, model=model, id=f"{number:026}")
        now = 0.0
        memory = ""
        count = 0
        first = dict[str, float]()
        longest_wait = 0.0
        for _ in jobs:
            loaded_models = (
                queue_bypass.bypass_models("default", {memory} if memory else set(), now) if prefers_loaded else None
            )
            head = _next_in_fair_order(connection, now)
            first.setdefault(head, now)
            picked_job = pick_job(connection, queue_bypass, now, models=("a", "b"), loaded_models=loaded_models)
            assert picked_job is not None
            longest_wait = max(longest_wait, now - first.pop(picked_job.record.id, now))
            count += picked_job.record.model != memory
            now += SECONDS / 10 + (load_seconds if picked_job.record.model != memory else 0.0)
            memory = picked_job.record.model
            finish_job(connection, picked_job.record.id, now)
    return count, longest_wait


def _next_in_fair_order(connection: Connection, now: float) -> str:
    """The job that would be next by the fair order alone."""
    savepoint = connection.begin_nested()
    picked_job = pick_job(connection, QueueBypass(patience=10.0**6), now, models=("a", "b"))
    savepoint.rollback()
    assert picked_job is not None
    return picked_job.record.id


def test_alternating_models_are_loaded_far_less_often():
    load_count_without, _ = count_loads(False, ["a", "b"] * 10)
    load_count_with, longest_wait = count_loads(True, ["a", "b"] * 10)
    assert load_count_without == 20
    assert load_count_with <= load_count_without / 5
    assert longest_wait <= MAX_BYPASS_SECONDS + 5.0  # plus the job that was running


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=20))
def test_no_job_is_bypassed_for_longer_than_the_limit(models):
    _, longest_wait = count_loads(True, models)
    assert longest_wait <= MAX_BYPASS_SECONDS + 5.0


def test_a_model_that_is_loading_goes_first_until_it_is_loaded():
    queue_bypass = QueueBypass()
    assert queue_bypass.bypass_models("p", {"a"}, 0.0) == {"a"}
    queue_bypass.note_dispatch("p", "job", 1.0, loads_model="b")
    assert queue_bypass.bypass_models("p", {"a"}, 2.0) == {"b"}
    assert queue_bypass.bypass_models("p", {"a", "b"}, 3.0) == {"a", "b"}
    assert queue_bypass.bypass_models("p", {"a"}, 1.0 + 1000 * MAX_BYPASS_SECONDS) == {"a"}, (
        "a load that never ends is forgotten"
    )


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 3)), max_size=60))
def test_a_job_may_be_bypassed_for_a_limited_time(look_times):
    queue_bypass = QueueBypass()
    first = dict[str, float]()
    for now, job in sorted(look_times):
        first_look = first.setdefault(str(job), now)
        assert queue_bypass.can_bypass(str(job), now) == (now - first_look < MAX_BYPASS_SECONDS)
