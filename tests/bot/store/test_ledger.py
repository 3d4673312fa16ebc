"""The ledger over real databases: usage is the cost that was really spent, whatever happens to jobs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event
from ulid import ULID

from bot.domain.dto import Destination, Member
from bot.domain.job_states import is_end
from bot.policy.limits import DAY_SECONDS, MONTH_SECONDS
from bot.policy.rules.effective_rules import UsageScope
from bot.store import JobRecord, NewJob, PickRequest, Store, Transition
from bot.store.fairness.ledger import Ledger, run_with_ledger
from engine.contract import Concept, Recipe
from shared.migrated_database import migrated

NOW = 1_800_000_000.0
RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip
EVERYTHING = PickRequest("default", ("embedded",), member_limit=10**6)
MEMBERS = [
    Member("ann", "Ann", "g", channel="a"), Member("ann", "Ann", "h", channel="c"),
    Member("bob", "Bob", "g", channel="b"), Member("ann", "Ann", "g", "relaxed", channel="a"),
]  # fmt: skip
COST = 10.0


def draft(member: Member, **more: Any) -> NewJob:
    values: dict[str, Any] = {
        "id": str(ULID()), "action": "imagine", "prompt": "a lamp", "notes": (), "task": RECIPE, "member": member,
        "destination": Destination("web", {"message": "1"}), "pool": "default", "model": "embedded", "cost": COST,
        "created": NOW, "deadline": NOW + 3600,
    }  # fmt: skip
    return NewJob(**(values | more))


def admit_all(drafts: Sequence[NewJob], _ledger: Ledger) -> Sequence[NewJob]:
    return drafts


actions = st.lists(
    st.tuples(
        st.sampled_from(["admit", "pick", "start", "requeue", "finish", "fail", "cancel", "wish"]),
        st.integers(0, 5), st.integers(0, 4), st.integers(0, 40), st.one_of(st.none(), st.floats(0, 30)),
    ),
    max_size=50,
)  # fmt: skip


class Bookkeeper:
    """A simple model of what each job costs its member, for comparison with the store."""

    def __init__(self) -> None:
        self.jobs: dict[str, Member] = {}
        self.charged: dict[str, float] = {}
        self.open: set[str] = set()

    def record_admission(self, job: str, member: Member) -> None:
        self.jobs[job] = member
        self.open.add(job)
        self.charged[job] = 0.0 if member.tier == "relaxed" else COST

    def record_end(self, record: JobRecord) -> None:
        """Happens once for each job, so that no refund is repeated."""
        assert record.id in self.open
        self.open.remove(record.id)
        assert 0.0 <= record.charged <= self.charged[record.id]
        self.charged[record.id] = record.charged

    def sums(self, whose: UsageScope, asker: Member) -> tuple[float, int]:
        """Device-seconds charged, and jobs that are open."""
        jobs = [job for job, member in self.jobs.items() if _counts(whose, member, asker)]
        return sum(self.charged[job] for job in jobs), sum(job in self.open for job in jobs)


def _counts(whose: UsageScope, member: Member, asker: Member) -> bool:
    if whose == "member everywhere":
        return member.id == asker.id
    if member.guild != asker.guild:
        return False
    return {"member here": member.id == asker.id, "channel": member.channel == asker.channel}.get(whose, True)


async def act(store: Store, book: Bookkeeper, action: str, which: int, epoch: int, step: int, spent: float | None):
    if action == "admit" or not book.jobs:
        member = MEMBERS[which % len(MEMBERS)]
        records, _ = await store.admit_jobs([draft(member)], None, admit_all, NOW)
        book.record_admission(records[0].id, member)
        return None
    if action == "pick":
        return await store.pick_job(EVERYTHING, 16, 1.0, NOW + 1)
    job = list(book.jobs)[which % len(book.jobs)]
    if action == "start":
        return await store.start_job(job, epoch, "w", step, NOW + 2)
    if action == "requeue":
        return await store.requeue_job(job, NOW + 3, step=step, audit_note="w")
    if action == "wish":
        return (await store.request_cancel(job, NOW + 4))[1]
    return await store.end_job(action, job, NOW + 5, spent, epoch=epoch)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions)
def test_usage_is_the_cost_spent_and_is_refunded_once(sequence) -> None:
    async def scenario(folder: str) -> None:
        file, book = Path(folder) / "d.sqlite", Bookkeeper()
        file.write_bytes(migrated())
        store = await Store.open(f"sqlite:///{file}")
        for step in sequence:
            moved: Transition | None = await act(store, book, *step)
            if moved is not None and is_end(moved.record.state):
                book.record_end(moved.record)
            await compare(store, book)
        await store.close()

    migrated()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(folder))


async def compare(store: Store, book: Bookkeeper) -> None:
    def read(ledger: Ledger) -> list[tuple[float, int]]:
        populations: tuple[UsageScope, ...] = get_args(UsageScope)
        found = [(ledger.get_spending(whose, DAY_SECONDS).total_cost, ledger.get_usage(whose)) for whose in populations]
        return [(spent, usage.running + usage.queued) for spent, usage in found]

    for asker in MEMBERS[:3]:
        found = await store.query(run_with_ledger, asker, NOW + 6, read)
        expected = [book.sums(whose, asker) for whose in get_args(UsageScope)]
        assert [count for _, count in found] == [count for _, count in expected]
        assert [spent for spent, _ in found] == pytest.approx([spent for spent, _ in expected])
        assert min(spent for spent, _ in found) >= 0.0


@pytest.mark.asyncio
async def test_quota_frees_at_the_same_time_for_one_member_and_for_all(store):
    await store.admit_jobs(
        [draft(MEMBERS[0], created=NOW - 10 * n, cost=float(n)) for n in range(1, 6)], None, admit_all, NOW
    )

    def read(ledger: Ledger) -> list[tuple[float, float]]:
        mine, everybodys = ledger.get_spending("member here", DAY_SECONDS), ledger.get_spending("guild", DAY_SECONDS)
        return [(mine.frees_at(excess), everybodys.frees_at(excess)) for excess in (0.5, 5.0, 5.5, 9.0, 14.9, 15.0)]

    found = await store.query(run_with_ledger, MEMBERS[0], NOW, read)
    assert [mine for mine, _ in found] == [NOW + DAY_SECONDS - 10 * n for n in (5, 5, 4, 4, 1, 1)]
    assert all(mine == everybodys for mine, everybodys in found)


@pytest.mark.asyncio
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_every_query_uses_an_index_however_many_jobs_there_are(store):
    await store.admit_jobs([draft(MEMBERS[n % 4]) for n in range(200)], None, admit_all, NOW)
    statements: list[tuple[str, Any]] = []

    def keep(_connection, _cursor, statement, parameters, _context, _many):
        statements.append((statement, parameters))

    def read(ledger: Ledger) -> None:
        ledger.load_rules()
        for whose in get_args(UsageScope):
            ledger.get_usage(whose)
            for window in (DAY_SECONDS, MONTH_SECONDS):
                ledger.get_spending(whose, window).frees_at(1.0)

    event.listen(store.database.reader, "before_cursor_execute", keep)
    await store.query(run_with_ledger, MEMBERS[0], NOW, read)
    event.remove(store.database.reader, "before_cursor_execute", keep)
    selects = [(sql, values) for sql, values in statements if sql.startswith("SELECT")]
    assert len(selects) == 1 + 4 + 4 + 8 * 2  # spent cost: from jobs, and from what is left of deleted ones

    def plans(connection: Connection) -> list[str]:
        return [
            "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values))
            for sql, values in selects
        ]

    for (sql, _), plan in zip(selects, await store.query(plans), strict=True):
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
    relaxed = draft(MEMBERS[3], created=NOW - 500.0)
    await store.admit_jobs([relaxed, draft(MEMBERS[0], created=NOW - 100.0)], None, admit_all, NOW)

    def frees(ledger: Ledger) -> list[float]:
        return [ledger.get_spending(whose, DAY_SECONDS).frees_at(0.0) for whose in get_args(UsageScope)]

    assert await store.query(run_with_ledger, MEMBERS[0], NOW, frees) == [NOW - 100.0 + DAY_SECONDS] * 4
