"""The store over real databases: one transaction per transition, one end and charge per job, the fair order in SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text, update
from ulid import ULID

from bot.domain.dto import Destination, Member
from bot.domain.errors import UserError
from bot.domain.job_states import END_STATES
from bot.policy.fair_queue import WaitEstimate, dispatch_order
from bot.policy.limits import DAY_SECONDS, check_job_count
from bot.store import DatabaseUnavailable, NewJob, PickRequest, Store, StoredPicture
from bot.store.fairness.ledger import Ledger
from bot.store.fairness.ledger import run_with_ledger as ledger
from bot.store.jobs import destinations, queries
from bot.store.schema.tables import jobs, metadata, models
from bot.store.transitions import job_writes
from bot.store.transitions.job_admin import fail_unreadable_jobs
from bot.store.transitions.job_transitions import MAX_ATTEMPTS, POISON_ATTEMPTS
from engine.contract import ModelProfile
from shared.stored_jobs import RECIPE

EVERYTHING = PickRequest("default", ("embedded",), member_limit=10**6)


def make_new_job(
    user: str = "ann", guild: str = "g", tier: str = "standard", cost: float = 10.0, **changes: Any
) -> NewJob:
    values: dict[str, Any] = {
        "id": str(ULID()),
        "action": "imagine",
        "prompt": "a lamp",
        "notes": ("a note",),
        "task": RECIPE,
        "member": Member(user, user, guild, tier),
        "destination": Destination("web", {"message": "1"}),
        "pool": "default",
        "model": "embedded",
        "cost": cost,
        "created": 1000.0,
        "deadline": 2000.0,
        "weight": 3.0 if tier == "v" else 1.0,
    }
    return NewJob(**(values | changes))


def admit_all(new_jobs: Sequence[NewJob], _ledger: Ledger) -> Sequence[NewJob]:
    """Admits every job."""
    return new_jobs


async def queue_jobs(store: Store, *new_jobs: NewJob) -> list[str]:
    records, _ = await store.admit_jobs(new_jobs, None, admit_all, 1000.0)
    return [record.id for record in records]


async def query(store: Store, sql: str) -> list[tuple]:
    return await store.query(lambda connection: [tuple(row) for row in connection.execute(text(sql))])


@pytest.mark.asyncio
async def test_an_admitted_job_reads_back_unchanged(store):
    (job,) = await queue_jobs(store, make_new_job(parent=("0" * 26, 2)))
    record = await store.get_job(job)
    assert record is not None
    assert (record.state, record.task, record.notes, record.parent) == ("queued", RECIPE, ("a note",), ("0" * 26, 2))
    assert (record.rows, record.charged, record.epoch, record.attempt) == (8, 10.0, 0, 1)
    assert record.to_job().billing_key.user == "ann"
    assert await store.query(destinations.get_destination, job) == Destination("web", {"message": "1"})
    assert await store.get_job("0" * 26) is None


@pytest.mark.asyncio
async def test_writes_are_durable_and_the_migrations_match_the_tables(store):
    def read_pragmas(connection: Connection) -> tuple:
        names = ("journal_mode", "synchronous") if connection.dialect.name == "sqlite" else ()
        values = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in names]
        return (*values, compare_metadata(MigrationContext.configure(connection), metadata))

    durable_values = ("wal", 2) if store.database.writer.dialect.name == "sqlite" else ()
    assert await store.query(read_pragmas) == (*durable_values, [])
    assert await store.write(read_pragmas) == (*durable_values, [])


@pytest.mark.asyncio
async def test_opening_a_store_again_changes_nothing(database: str):
    for number in range(2):
        store = await Store.open(database.replace("sqlite:", "sqlite+aiosqlite:"))
        await queue_jobs(store, make_new_job())
        assert await query(store, "SELECT count(*) FROM jobs") == [(number + 1,)]
        await store.close()


@pytest.mark.asyncio
async def test_the_same_idempotency_key_returns_the_same_jobs(store):
    first, new = await store.admit_jobs([make_new_job(), make_new_job()], "interaction 1", admit_all, 1000.0)
    repeated_records, old = await store.admit_jobs([make_new_job(), make_new_job()], "interaction 1", admit_all, 1000.0)
    assert (new, old) == (True, False)
    assert [record.id for record in first] == [record.id for record in repeated_records]
    assert await query(store, "SELECT count(*) FROM jobs") == [(2,)]


@pytest.mark.asyncio
async def test_twenty_requests_at_once_with_one_key_make_one_job(store):
    answers = await asyncio.gather(
        *(store.admit_jobs([make_new_job()], "pressed", admit_all, 1000.0) for _ in range(20))
    )
    assert sum(new for _, new in answers) == 1
    assert len({record.id for records, _ in answers for record in records}) == 1


@pytest.mark.asyncio
async def test_limits_hold_under_concurrent_requests_and_a_refusal_writes_nothing(store):
    def admit_up_to_limit(new_jobs, ledger):
        check_job_count(3, 4, ledger.get_usage("member everywhere"), 1000.0)
        return new_jobs

    async def request_job():
        try:
            await store.admit_jobs([make_new_job(cost=1.0)], None, admit_up_to_limit, 1000.0)
        except UserError:
            return 0
        return 1

    assert sum(await asyncio.gather(*(request_job() for _ in range(20)))) == 7
    for table in ("jobs", "places", "moves"):
        assert await query(store, f"SELECT count(*) FROM {table}") == [(7,)]
    assert await query(store, "SELECT DISTINCT queued FROM accounts") == [(7,)]


@pytest.mark.asyncio
async def test_usage_counts_running_and_waiting_jobs_and_a_days_charges(store):
    jobs = await queue_jobs(
        store, make_new_job(), make_new_job(), make_new_job(user="bob"), make_new_job(created=-100_000.0)
    )
    await store.pick_job(EVERYTHING, 8, 0.0, 1001.0)
    ann = Member("ann", "ann", "g")

    def count_usage(ledger: Ledger) -> tuple[int, int, int, float, float]:
        member_usage = ledger.get_usage("member here")
        guild_usage = ledger.get_usage("guild")
        actual_cost = (
            ledger.get_spending("member here", DAY_SECONDS).total_cost,
            ledger.get_spending("guild", DAY_SECONDS).total_cost,
        )
        return (member_usage.running, member_usage.queued, guild_usage.queued, *actual_cost)

    assert await store.query(ledger, ann, 1002.0, count_usage) == (1, 2, 3, 20.0, 30.0)
    await store.end_job("cancel", jobs[1], 1003.0, 0.0)
    assert await store.query(ledger, ann, 1004.0, count_usage) == (1, 1, 2, 10.0, 20.0)


@pytest.mark.asyncio
async def test_older_epochs_are_rejected_and_an_ended_job_stays_ended(store):
    (job,) = await queue_jobs(store, make_new_job())
    await store.pick_job(EVERYTHING, 32, 1.0, 1001.0)
    assert (await store.start_job(job, 5, "w", 0, 1002.0)).record.state == "running"
    assert await store.start_job(job, 4, "stale", 0, 1003.0) is None
    assert await store.end_job("finish", job, 1004.0, 3.0, epoch=4) is None
    assert not await store.record_picture(StoredPicture(job, 0, "image", "a" * 64, 1, 64, 64), 4, 1.0)
    assert await store.record_picture(StoredPicture(job, 0, "image", "a" * 64, 1, 64, 64), 5, 1.0)
    transition = await store.end_job("finish", job, 1004.0, 3.0, epoch=5)
    assert (transition.record.state, transition.record.charged, transition.record.ended) == ("finished", 3.0, 1004.0)
    assert await store.end_job("fail", job, 1005.0, 0.0, epoch=6) is None
    assert await store.end_job("cancel", job, 1005.0, 0.0) is None
    assert not await store.record_picture(StoredPicture(job, 1, "image", "b" * 64, 1, 64, 64), 6, 1.0)
    assert await store.requeue_job(job, 1005.0, step=1, audit_note="") is None
    assert (await store.get_job(job)).charged == 3.0
    assert await query(store, "SELECT source, target FROM moves ORDER BY id") == [
        ("new", "queued"),
        ("queued", "sent"),
        ("sent", "running"),
        ("running", "finished"),
    ]


@pytest.mark.asyncio
async def test_a_charge_never_exceeds_the_reserve_while_the_fair_order_counts_everything(store):
    (job,) = await queue_jobs(store, make_new_job(cost=10.0))
    await store.pick_job(EVERYTHING, 32, 1.0, 1001.0)
    transition = await store.end_job("finish", job, 1002.0, 25.0)
    assert (transition.record.charged, transition.record.billed) == (10.0, 25.0)
    assert await query(store, "SELECT virtual FROM accounts WHERE path = 'default/standard/g/ann'") == [(25.0,)]


@pytest.mark.asyncio
async def test_a_worker_that_lies_about_its_progress_gains_no_endless_attempts(store):
    (job,) = await queue_jobs(store, make_new_job())
    await store.pick_job(EVERYTHING, 8, 0, 1001.0)
    runs = 0
    while (transition := await store.start_job(job, runs + 1, "liar", 10 * runs, 1002.0)).record.state == "running":
        assert transition.record.step <= RECIPE.steps
        runs += 1
    assert POISON_ATTEMPTS < runs <= RECIPE.steps // 10 + POISON_ATTEMPTS
    assert (transition.record.state, transition.record.charged) == ("failed", 0.0)


@pytest.mark.asyncio
@pytest.mark.parametrize("restart_method", ["claimed again", "queued again"])
async def test_a_job_fails_after_twenty_attempts_even_if_each_makes_progress(store, restart_method):
    (job,) = await queue_jobs(store, make_new_job())
    await store.pick_job(EVERYTHING, 8, 0, 1001.0)
    for number in range(1, MAX_ATTEMPTS + 1):
        assert (await store.start_job(job, number, "w", number, 1002.0)).record.state == "running"
        assert (await store.start_job(job, number, "w", number, 1002.0)).record.state == "running", (
            "a repeated report counts once"
        )
        if restart_method == "queued again" and number < MAX_ATTEMPTS:
            await store.requeue_job(job, 1003.0, step=number, audit_note="lost")
            await store.pick_job(EVERYTHING, 8, 0, 1003.5)
    if restart_method == "queued again":
        transition = await store.requeue_job(job, 1004.0, step=30, audit_note="lost")
    else:
        transition = await store.start_job(job, MAX_ATTEMPTS + 1, "w", 30, 1004.0)
    assert (transition.record.state, transition.record.charged, transition.record.blame) == ("failed", 0.0, "worker")
    assert transition.record.reason == "It was tried 20 times and never finished."


@pytest.mark.asyncio
async def test_three_attempts_without_progress_are_poison_and_progress_resets_the_count(store):
    (job,) = await queue_jobs(store, make_new_job())
    await store.pick_job(EVERYTHING, 32, 1.0, 1001.0)
    await store.start_job(job, 1, "w", 0, 1002.0)
    await store.start_job(job, 2, "w", 0, 1003.0)
    await store.start_job(job, 3, "w", 0, 1004.0)
    assert (await store.get_job(job)).attempts_without_progress == POISON_ATTEMPTS - 1
    assert (await store.start_job(job, 4, "w", 20, 1005.0)).record.attempts_without_progress == 0
    for epoch in (5, 6):
        assert (await store.start_job(job, epoch, "w", 20, 1006.0)).record.state == "running"
    assert await store.start_job(job, 4, "stale", 0, 1006.5) is None
    assert (await store.start_job(job, 6, "w", 20, 1006.6, preview_step=20)).record.attempts_without_progress == 2
    transition = await store.start_job(job, 7, "w", 20, 1007.0)
    assert (transition.record.state, transition.record.blame, transition.record.charged) == ("failed", "worker", 0.0)


@pytest.mark.asyncio
async def test_a_job_that_the_broker_lost_may_start_over(store):
    (job,) = await queue_jobs(store, make_new_job())
    await store.pick_job(EVERYTHING, 32, 1.0, 1001.0)
    await store.start_job(job, 1, "w", 0, 1002.0)
    assert (await store.start_job(job, 2, "w", 0, 1003.0)).record.attempts_without_progress == 1
    for epoch in range(3, 9):
        transition = await store.start_job(job, epoch, "w", 0, 1004.0, snapshots_lost=True)
        assert (transition.record.state, transition.record.attempts_without_progress, transition.record.step) == (
            "running",
            1,
            0,
        )
    (job,) = await queue_jobs(store, make_new_job())
    await store.pick_job(EVERYTHING, 32, 1.0, 1005.0)
    await store.start_job(job, 11, "w", 30, 1006.0)
    await store.start_job(job, 12, "w", 0, 1007.0, snapshots_lost=True)
    assert (
        await store.start_job(job, 13, "w", 10, 1008.0)
    ).record.attempts_without_progress == 0  # fewer steps than before the loss, but progress
    for epoch in (14, 15):
        assert (await store.start_job(job, epoch, "w", 10, 1009.0)).record.state == "running"
    assert (await store.start_job(job, 16, "w", 10, 1010.0)).record.state == "failed"


@pytest.mark.asyncio
async def test_workers_that_shut_down_in_order_poison_no_job(store):
    (job,) = await queue_jobs(store, make_new_job())
    await store.pick_job(EVERYTHING, 32, 1.0, 1001.0)
    for epoch in range(1, 8):  # seven restarts before its first step
        transition = await store.start_job(job, epoch, "w", 0, 1002.0)
        assert (transition.record.state, transition.record.attempts_without_progress) == ("running", 0)
        assert [
            await store.write(job_writes.record_hand_back, job, number) for number in (epoch - 1, epoch, epoch)
        ] == [False, True, False]
    for epoch in (8, 9, 10):
        assert (await store.start_job(job, epoch, "w", 0, 1003.0)).record.state == "running"
    assert (await store.start_job(job, 11, "w", 0, 1004.0)).record.state == "failed"


@pytest.mark.asyncio
async def test_a_requeue_counts_attempts_and_is_not_billed_twice(store):
    (job,) = await queue_jobs(store, make_new_job(cost=10.0))
    await store.pick_job(EVERYTHING, 32, 1.0, 1001.0)
    requeued = await store.requeue_job(job, 1002.0, step=12, audit_note="lost")
    assert (requeued.record.state, requeued.record.attempt, requeued.record.step) == ("queued", 2, 12)
    assert requeued.record.attempts_without_progress == 0
    await store.pick_job(EVERYTHING, 32, 1.0, 1003.0)
    assert await query(store, "SELECT DISTINCT virtual, queued, active FROM accounts") == [(10.0, 0, 1)]
    states = [(await store.requeue_job(job, 1004.0, step=12, audit_note="lost")).record.state]
    for _ in range(2):
        await store.pick_job(EVERYTHING, 32, 1.0, 1005.0)
        states.append((await store.requeue_job(job, 1006.0, step=12, audit_note="lost", reason="said")).record.state)
    assert states == ["queued", "queued", "failed"]
    record = await store.get_job(job)
    assert (record.charged, record.billed, record.reason) == (0.0, 0.0, "said")
    assert await query(store, "SELECT DISTINCT virtual, queued, active FROM accounts") == [(0.0, 0, 0)]


@pytest.mark.asyncio
async def test_cancelling_ends_a_waiting_job_at_once_and_asks_a_sent_one_to_stop(store):
    waiting_job, running_job = await queue_jobs(store, make_new_job(), make_new_job(user="bob"))
    record, transition = await store.request_cancel(waiting_job, 1001.0)
    assert (record.state, record.charged, transition.old_state) == ("cancelled", 0.0, "queued")
    await store.pick_job(EVERYTHING, 32, 1.0, 1002.0)
    record, transition = await store.request_cancel(running_job, 1003.0)
    assert (record.state, record.cancelling, transition) == ("sent", True, None)
    transition = await store.requeue_job(running_job, 1004.0, step=10, audit_note="lost")
    assert (transition.record.state, transition.record.charged) == ("cancelled", 2.5)
    assert (await store.request_cancel(running_job, 1005.0))[0].state == "cancelled"
    assert await store.request_cancel("0" * 26, 1005.0) == (None, None)


@pytest.mark.asyncio
async def test_dispatched_rows_fit_the_pool_and_newcomers_still_get_in(store):
    await queue_jobs(store, *(make_new_job() for _ in range(9)))
    picked_jobs = [await store.pick_job(EVERYTHING, 32, 0.5, 1001.0) for _ in range(5)]
    assert [transition is not None for transition in picked_jobs] == [True] * 4 + [False]
    await queue_jobs(
        store, make_new_job(user="bob"), make_new_job(user="bob"), make_new_job(user="cyd"), make_new_job(user="dan")
    )
    later_picks = [await store.pick_job(EVERYTHING, 32, 0.5, 1002.0) for _ in range(3)]
    assert [transition.record.member if transition else None for transition in later_picks] == ["bob", "cyd", None]
    assert await store.pick_job(EVERYTHING, 0, 1.0, 1003.0) is None


@pytest.mark.asyncio
async def test_a_job_larger_than_its_pool_runs_there_alone(store):
    await queue_jobs(store, make_new_job(), make_new_job())
    assert await store.pick_job(EVERYTHING, 4, 1.0, 1001.0) is not None
    assert await store.pick_job(EVERYTHING, 4, 1.0, 1001.0) is None


@pytest.mark.asyncio
async def test_a_members_running_jobs_are_limited_and_others_go_past(store):
    await queue_jobs(store, *(make_new_job(guild=guild) for guild in "ghijk"), make_new_job(user="bob", guild="z"))
    limited_request = PickRequest("default", ("embedded",), member_limit=2)
    picked_jobs = [await store.pick_job(limited_request, 1000, 1.0, 1001.0) for _ in range(4)]
    assert sorted(transition.record.member for transition in picked_jobs if transition) == ["ann", "ann", "bob"]


@pytest.mark.asyncio
async def test_jobs_wait_for_a_worker_that_has_their_model_and_pool(store):
    await queue_jobs(store, make_new_job(model="other"), make_new_job(user="bob"), make_new_job(user="cyd", pool="big"))
    assert (await store.pick_job(EVERYTHING, 1000, 1.0, 1001.0)).record.member == "bob"
    assert await store.pick_job(EVERYTHING, 1000, 1.0, 1001.0) is None
    assert (await store.pick_job(PickRequest("big", ("embedded",), 3), 1000, 1.0, 1001.0)).record.member == "cyd"


requests = st.lists(
    st.tuples(st.sampled_from(["s", "v"]), st.sampled_from("gh"), st.sampled_from("abc"), st.floats(0.5, 20)),
    min_size=1,
    max_size=25,
)


def run_with_store(scenario, url: str) -> None:
    async def run_scenario() -> None:
        store = await Store.open(url)
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(run_scenario())


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 25), pytest.param("postgres", 6, marks=pytest.mark.slow)])
def test_sql_picks_jobs_in_the_fair_order(new_database_url, kind, examples):
    async def serve(store: Store, first: list[tuple], second: list[tuple]) -> None:
        for wave in (first, second):
            await queue_jobs(store, *(make_new_job(user, guild, tier, cost) for tier, guild, user, cost in wave))
            queue = await store.query(queries.load_waiting_queue, 1000)
            assert queue is not None
            waiting_jobs, accounts = queue
            expected = list(dispatch_order(accounts, [one for one, _ in waiting_jobs]))
            picked_order = []
            for _ in expected if wave is second else expected[: len(expected) // 2]:
                transition = await store.pick_job(EVERYTHING, 10**6, 1.0, 1001.0)
                assert transition is not None
                picked_order.append(transition.record.id)
            assert picked_order == expected[: len(picked_order)]

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(requests, requests)
    def check_pick_order(first: list[tuple], second: list[tuple]) -> None:
        run_with_store(lambda store: serve(store, first, second), new_database_url(kind))

    check_pick_order()


actions = st.lists(
    st.tuples(
        st.sampled_from(["admit", "pick", "start", "requeue", "finish", "fail", "cancel", "request_cancel"]),
        st.integers(0, 5),
        st.integers(0, 6),
        st.integers(0, 40),
        st.floats(0, 100),
    ),
    max_size=60,
)


async def _apply_action(
    store: Store, jobs: list[str], action: str, job_index: int, epoch: int, step: int, actual_cost: float
):
    if action == "admit" or not jobs:
        jobs += await queue_jobs(store, make_new_job(user=f"u{job_index % 3}"))
    elif action == "pick":
        return await store.pick_job(EVERYTHING, 16, 1.0, 1001.0)
    job = jobs[job_index % len(jobs)]
    if action == "start":
        return await store.start_job(job, epoch, "w", step, 1002.0)
    if action == "requeue":
        return await store.requeue_job(job, 1003.0, step=step, audit_note="w")
    if action == "request_cancel":
        return (await store.request_cancel(job, 1004.0))[1]
    if action in ("finish", "fail", "cancel"):
        return await store.end_job(action, job, 1005.0, actual_cost, epoch=epoch)
    return None


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 40), pytest.param("postgres", 8, marks=pytest.mark.slow)])
def test_any_sequence_of_actions_ends_a_job_once_and_charges_it_once(new_database_url, kind, examples):
    async def run_actions(store: Store, sequence: list[tuple]) -> None:
        jobs: list[str] = []
        end_states: dict[str, tuple] = {}
        for step in sequence:
            transition = await _apply_action(store, jobs, *step)
            if transition is not None and transition.record.state in END_STATES:
                assert transition.record.id not in end_states
                end_states[transition.record.id] = (transition.record.state, transition.record.charged)
        await _check_invariants(store, end_states)

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(actions)
    def check_action_sequence(sequence: list[tuple]) -> None:
        run_with_store(lambda store: run_actions(store, sequence), new_database_url(kind))

    check_action_sequence()


async def _check_invariants(store: Store, end_states: dict[str, tuple]) -> None:
    rows = await query(store, "SELECT id, state, charged, cost, billed FROM jobs")
    assert {job: (state, charged) for job, state, charged, _, _ in rows if state in END_STATES} == end_states
    assert all(0 <= charged <= cost for _, _, charged, cost, _ in rows)
    end_counts = await query(
        store, "SELECT job, count(*) FROM moves WHERE target IN ('finished','failed','cancelled') GROUP BY job"
    )
    assert dict(end_counts) == dict.fromkeys(end_states, 1)
    queued_count = sum(state == "queued" for _, state, *_ in rows)
    active = sum(state in ("sent", "running") for _, state, *_ in rows)
    for (parent,) in await query(store, "SELECT DISTINCT parent FROM accounts"):
        sums = await query(
            store, f"SELECT sum(queued), sum(active), sum(virtual) FROM accounts WHERE parent = '{parent}'"
        )
        assert sums[0][:2] == (queued_count, active)
        if parent == "":
            assert sums[0][2] == pytest.approx(sum(charged_cost for *_, charged_cost in rows))


@pytest.mark.asyncio
async def test_a_place_in_a_long_queue_is_estimated_without_listing_it(store):
    jobs = await queue_jobs(store, *(make_new_job("flood", cost=2.0) for _ in range(50)))
    (late_job,) = await queue_jobs(store, make_new_job("late", cost=2.0))
    assert await store.query(queries.load_waiting_queue, 50) is None
    estimate = WaitEstimate((await store.query(queries.summarise_waiting))["default"])
    earlier_count = await store.query(queries.count_earlier_jobs, await store.get_job(late_job))
    assert estimate.estimate(earlier_count) == (1, pytest.approx(4.0))  # the flood's first job, and itself
    assert await store.query(queries.count_earlier_jobs, await store.get_job(jobs[-1])) == 49
    assert estimate.estimate(49) == (50, pytest.approx(102.0))


@pytest.mark.asyncio
async def test_destinations_are_merged_and_deliveries_end(store):
    one, discord_job = await queue_jobs(
        store, make_new_job(), make_new_job(destination=Destination("discord", {"token": "t"}))
    )
    await store.write(destinations.update_destination, discord_job, {"message": "9", "token": "u"})
    assert await store.query(destinations.list_undelivered, "discord") == [], "a waiting job has nothing to deliver"
    for _ in range(2):
        await store.pick_job(EVERYTHING, 32, 1.0, 1000.5)
    undelivered = await store.query(destinations.list_undelivered, "discord")
    assert [(record.id, destination.address) for record, destination in undelivered] == [
        (discord_job, {"token": "u", "message": "9"})
    ]
    await store.write(destinations.mark_delivered, discord_job, 1001.0)
    assert await store.query(destinations.list_undelivered, "discord") == []
    assert [record.id for record, _ in await store.query(destinations.list_undelivered, "web")] == [one]


@pytest.mark.asyncio
async def test_an_unreadable_row_blocks_no_one_and_fails_without_a_charge(store, caplog):
    ended_job, waiting_job, sent_job, valid_job = await queue_jobs(
        store, *(make_new_job(user) for user in ("a", "b", "c", "d"))
    )
    await store.end_job("finish", ended_job, 1001.0, 1.0)
    await store.pick_job(PickRequest("default", ("embedded",), member_limit=1), 8, 0, 1001.0)
    corrupt_tasks = update(jobs).where(jobs.c.id != valid_job).values(task=b"\0")
    await store.write(lambda connection: connection.execute(corrupt_tasks) and None)
    assert [one.id for one in await store.query(queries.list_newest, None, 9)] == [valid_job]
    assert f"job {sent_job}: its row cannot be read" in caplog.text
    assert await store.write(fail_unreadable_jobs, 1002.0) == [waiting_job, sent_job]
    assert await store.write(fail_unreadable_jobs, 1003.0) == []
    failures = await query(store, "SELECT state, blame, charged, billed FROM jobs WHERE reason LIKE '%cannot be read%'")
    assert failures == [("failed", "us", 0.0, 0.0)] * 2
    assert await query(store, "SELECT queued, active FROM accounts WHERE path = 'default'") == [(1, 0)]
    assert (await store.pick_job(EVERYTHING, 8, 0, 1004.0)).record.id == valid_job


@pytest.mark.asyncio
async def test_an_unreadable_profile_of_a_model_is_left_out(store):
    corrupt_model = models.insert().values(name="old", warm=b"\0", pool="default", seen=1.0)
    await store.write(lambda connection: connection.execute(corrupt_model) and None)
    assert await store.query(queries.list_models) == []


@pytest.mark.asyncio
async def test_a_models_profile_is_remembered_once(store):
    profile = ModelProfile(
        name="embedded",
        revision="1",
        dtype="bfloat16",
        size=64,
        multiple=8,
        max_pixels=4096,
        tokens=24,
        steps=100,
        sampler="ddpm",
        samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
        guidance=4.0,
        row_ms=3.0,
        encode_ms=1.0,
        decode_ms=1.0,
    )
    await store.save_model(profile, "old", 1.0)
    await store.save_model(profile, "default", 2.0)
    assert await store.query(queries.list_models) == [(profile, "default")]


@pytest.mark.asyncio
async def test_expired_jobs_are_found_whatever_their_state(store):
    late_job, later_job, far_job = await queue_jobs(
        store, make_new_job(), make_new_job(), make_new_job(deadline=9000.0)
    )
    await store.pick_job(EVERYTHING, 8, 0.0, 1001.0)
    assert [record.id for record in await store.query(queries.list_expired, 2000.0)] == [late_job, later_job]
    assert far_job not in [record.id for record in await store.query(queries.list_expired, 8999.0)]


@pytest.mark.asyncio
async def test_an_unreachable_database_raises_a_clear_error(tmp_path):
    with pytest.raises(DatabaseUnavailable, match="cannot be used now"):
        await Store.open(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.sqlite'}")
