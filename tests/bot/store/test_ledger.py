"""The ledger over real databases: usage equals the cost that jobs really spent."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event

from bot.domain.dto import Member
from bot.domain.job_states import is_end
from bot.policy.limits import DAY_SECONDS, MONTH_SECONDS
from bot.policy.rules.catalogue import UsageScope
from bot.store import JobRecord, NewJob, PickRequest, Store, Transition
from bot.store.fairness.ledger import Ledger, run_with_ledger
from shared.migrated_database import make_migrated_database
from shared.stored_jobs import make_new_job

NOW = 1_800_000_000.0
EVERYTHING = PickRequest("default", ("embedded",), member_limit=10**6)
MEMBERS = [
    Member("ann", "Ann", "g", channel="a"),
    Member("ann", "Ann", "h", channel="c"),
    Member("bob", "Bob", "g", channel="b"),
    Member("ann", "Ann", "g", "relaxed", channel="a"),
]
COST = 10.0


def draft(member: Member, **changes: Any) -> NewJob:
    new_job = replace(make_new_job(created_at=NOW), member=member, cost=COST, deadline=NOW + 3600)
    return replace(new_job, **changes)


def admit_all(drafts: Sequence[NewJob], _ledger: Ledger) -> Sequence[NewJob]:
    return drafts


actions = st.lists(
    st.tuples(
        st.sampled_from(["admit", "pick", "start", "requeue", "finish", "fail", "cancel", "wish"]),
        st.integers(0, 5),
        st.integers(0, 4),
        st.integers(0, 40),
        st.one_of(st.none(), st.floats(0, 30)),
    ),
    max_size=50,
)


class Bookkeeper:
    """A simple model of what each job costs its member, for comparison with the store."""

    def __init__(self) -> None:
        self.jobs: dict[str, Member] = {}
        self.charges: dict[str, float] = {}
        self.open_jobs: set[str] = set()

    def record_admission(self, job: str, member: Member) -> None:
        self.jobs[job] = member
        self.open_jobs.add(job)
        self.charges[job] = 0.0 if member.tier == "relaxed" else COST

    def record_end(self, record: JobRecord) -> None:
        """Ends a job once, so that no refund is repeated."""
        assert record.id in self.open_jobs
        self.open_jobs.remove(record.id)
        assert 0.0 <= record.charged <= self.charges[record.id]
        self.charges[record.id] = record.charged

    def sums(self, usage_scope: UsageScope, asker: Member) -> tuple[float, int]:
        """Device-seconds charged, and jobs that are open."""
        jobs = [job for job, member in self.jobs.items() if _counts(usage_scope, member, asker)]
        return sum(self.charges[job] for job in jobs), sum(job in self.open_jobs for job in jobs)


def _counts(usage_scope: UsageScope, member: Member, asker: Member) -> bool:
    if usage_scope == "member everywhere":
        return member.id == asker.id
    if member.guild != asker.guild:
        return False
    return {"member here": member.id == asker.id, "channel": member.channel == asker.channel}.get(usage_scope, True)


async def apply_action(
    store: Store, bookkeeper: Bookkeeper, action: str, job_index: int, epoch: int, step: int, cost: float | None
):
    if action == "admit" or not bookkeeper.jobs:
        member = MEMBERS[job_index % len(MEMBERS)]
        records, _ = await store.admit_jobs([draft(member)], None, admit_all, NOW)
        bookkeeper.record_admission(records[0].id, member)
        return None
    if action == "pick":
        return await store.pick_job(EVERYTHING, 16, 1.0, NOW + 1)
    job = list(bookkeeper.jobs)[job_index % len(bookkeeper.jobs)]
    if action == "start":
        return await store.start_job(job, epoch, "w", step, NOW + 2)
    if action == "requeue":
        return await store.requeue_job(job, NOW + 3, step=step, audit_note="w")
    if action == "wish":
        return (await store.request_cancel(job, NOW + 4))[1]
    return await store.end_job(action, job, NOW + 5, cost, epoch=epoch)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions)
def test_usage_is_the_cost_spent_and_is_refunded_once(sequence) -> None:
    async def scenario(folder: str) -> None:
        file = Path(folder) / "d.sqlite"
        bookkeeper = Bookkeeper()
        file.write_bytes(make_migrated_database())
        store = await Store.open(f"sqlite:///{file}")
        for step in sequence:
            transition: Transition | None = await apply_action(store, bookkeeper, *step)
            if transition is not None and is_end(transition.record.state):
                bookkeeper.record_end(transition.record)
            await compare(store, bookkeeper)
        await store.close()

    make_migrated_database()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(folder))


async def compare(store: Store, bookkeeper: Bookkeeper) -> None:
    def read(ledger: Ledger) -> list[tuple[float, int]]:
        usage_scopes: tuple[UsageScope, ...] = get_args(UsageScope)
        spending_and_usage = [
            (ledger.get_spending(usage_scope, DAY_SECONDS).total_cost, ledger.get_usage(usage_scope))
            for usage_scope in usage_scopes
        ]
        return [(cost, usage.running + usage.queued) for cost, usage in spending_and_usage]

    for asker in MEMBERS[:3]:
        actual = await store.query(run_with_ledger, asker, NOW + 6, read)
        expected = [bookkeeper.sums(usage_scope, asker) for usage_scope in get_args(UsageScope)]
        assert [count for _, count in actual] == [count for _, count in expected]
        assert [cost for cost, _ in actual] == pytest.approx([cost for cost, _ in expected])
        assert min(cost for cost, _ in actual) >= 0.0


@pytest.mark.asyncio
async def test_quota_frees_at_the_same_time_for_one_member_and_for_all(store):
    await store.admit_jobs(
        [draft(MEMBERS[0], created=NOW - 10 * n, cost=float(n)) for n in range(1, 6)], None, admit_all, NOW
    )

    def read(ledger: Ledger) -> list[tuple[float, float]]:
        member_spending = ledger.get_spending("member here", DAY_SECONDS)
        guild_spending = ledger.get_spending("guild", DAY_SECONDS)
        return [
            (member_spending.frees_at(excess), guild_spending.frees_at(excess))
            for excess in (0.5, 5.0, 5.5, 9.0, 14.9, 15.0)
        ]

    times = await store.query(run_with_ledger, MEMBERS[0], NOW, read)
    assert [member_spending for member_spending, _ in times] == [NOW + DAY_SECONDS - 10 * n for n in (5, 5, 4, 4, 1, 1)]
    assert all(member_spending == guild_spending for member_spending, guild_spending in times)


@pytest.mark.asyncio
async def test_a_ledger_gives_the_same_answers_after_its_transaction(store):
    await store.admit_jobs([draft(MEMBERS[0])], None, admit_all, NOW)
    ledgers: list[Ledger] = []

    def ask(ledger: Ledger) -> list[object]:
        ledgers.append(ledger)
        answers: list[object] = [ledger.load_rules(), ledger.load_preferences()]
        answers.append(ledger.is_input_deleted(None, ("0" * 64,)))
        for usage_scope in get_args(UsageScope):
            spending = ledger.get_spending(usage_scope, DAY_SECONDS)
            answers += [ledger.get_usage(usage_scope), spending.total_cost, spending.frees_at(1.0)]
        return [*answers, ledger.get_relaxed_spending("member here", DAY_SECONDS).total_cost]

    answers = await store.query(run_with_ledger, MEMBERS[0], NOW, ask)
    ledgers[0]._connection = None  # pyright: ignore[reportAttributeAccessIssue]
    assert ask(ledgers[0]) == answers


@pytest.mark.asyncio
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_every_query_uses_an_index_however_many_jobs_there_are(store):
    await store.admit_jobs([draft(MEMBERS[n % 4]) for n in range(200)], None, admit_all, NOW)
    statements: list[tuple[str, Any]] = []

    def record_statement(_connection, _cursor, statement, parameters, _context, _executemany):
        statements.append((statement, parameters))

    def read(ledger: Ledger) -> None:
        ledger.load_rules()
        for usage_scope in get_args(UsageScope):
            ledger.get_usage(usage_scope)
            for window in (DAY_SECONDS, MONTH_SECONDS):
                ledger.get_spending(usage_scope, window).frees_at(1.0)

    event.listen(store.database.reader, "before_cursor_execute", record_statement)
    await store.query(run_with_ledger, MEMBERS[0], NOW, read)
    event.remove(store.database.reader, "before_cursor_execute", record_statement)
    select_statements = [(sql, values) for sql, values in statements if sql.startswith("SELECT")]
    assert len(select_statements) == 1 + 4 + 4 + 8 * 2  # spent cost: from jobs, and from what is left of deleted ones

    def plans(connection: Connection) -> list[str]:
        return [
            "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values))
            for sql, values in select_statements
        ]

    for (sql, _), plan in zip(select_statements, await store.query(plans), strict=True):
        assert "SCAN jobs" not in plan, sql
        assert "SCAN rules" not in plan, sql
        if "jobs.member =" in sql:
            assert "INDEX jobs_member" in plan, "the jobs of one member are fewer than those of a guild"
        elif "sum(" in sql and "OVER" not in sql:
            assert "COVERING INDEX jobs_guild_created" in plan, sql


@pytest.mark.asyncio
async def test_no_query_runs_twice(store):
    statements: list[str] = []
    reader = store.database.reader
    event.listen(reader, "before_cursor_execute", lambda _c, _u, statement, *_: statements.append(statement))

    def read(ledger: Ledger) -> None:
        for _ in range(3):
            ledger.get_usage("guild")
            ledger.get_spending("member here", DAY_SECONDS)

    await store.query(run_with_ledger, MEMBERS[0], NOW, read)
    assert sum("FROM jobs" in sql for sql in statements) == 2


@pytest.mark.asyncio
async def test_a_job_without_cost_frees_no_quota(store):
    relaxed_draft = draft(MEMBERS[3], created=NOW - 500.0)
    await store.admit_jobs([relaxed_draft, draft(MEMBERS[0], created=NOW - 100.0)], None, admit_all, NOW)

    def list_free_times(ledger: Ledger) -> list[float]:
        return [ledger.get_spending(usage_scope, DAY_SECONDS).frees_at(0.0) for usage_scope in get_args(UsageScope)]

    assert await store.query(run_with_ledger, MEMBERS[0], NOW, list_free_times) == [NOW - 100.0 + DAY_SECONDS] * 4
