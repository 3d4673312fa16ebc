"""Repeated, late and stale reports in any order: states, charges, accounts and audit agree; an end is final."""

from __future__ import annotations

import ast
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Connection, create_engine, select

from bot.domain.dto import Member
from bot.domain.job_states import ACTIVE_STATES, END_STATES, TRANSITIONS
from bot.policy.fair_queue import ancestor_paths
from bot.store import NewJob, PickRequest
from bot.store.schema.tables import accounts, jobs, metadata
from bot.store.schema.tables import audit_lines as audit
from bot.store.transitions import job_admin, job_transitions
from shared.stored_jobs import make_new_job

STORE = Path(job_transitions.__file__).parents[1]
POOLS = ("default", "other")


def draft(user: str, tier: str, cost: float) -> NewJob:
    return replace(make_new_job(), member=Member(user, user, "g", tier), cost=cost)


class Jobs(RuleBasedStateMachine):
    """Jobs of three accounts, and every report that a broker may repeat or delay."""

    @initialize()
    def open_database(self) -> None:
        self.connection: Connection = create_engine("sqlite://").connect()
        metadata.create_all(self.connection)
        self.now = 0.0
        self.end_states = dict[str, tuple[str, float]]()
        self.reports: list[tuple[Any, ...]] = []  # of workers, to be repeated
        self.admit("ann", "standard", 8.0)

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()

    def _job(self, job_index: int) -> str:
        ids = self.connection.execute(select(jobs.c.id).order_by(jobs.c.id)).scalars().all()
        return ids[job_index % len(ids)]

    def _record_transition(self, transition: Any) -> None:
        if transition is not None and transition.record.state in END_STATES:
            assert transition.record.id not in self.end_states, "a job ends once"
            self.end_states[transition.record.id] = (transition.record.state, transition.record.charged)

    @rule(user=st.sampled_from(["ann", "bob"]), tier=st.sampled_from(["standard", "relaxed"]), cost=st.floats(0.5, 50))
    def admit(self, user: str, tier: str, cost: float) -> None:
        job_transitions.insert_jobs(self.connection, [draft(user, tier, cost)], None)

    @rule(pool=st.sampled_from(POOLS), rows=st.sampled_from([0, 8, 16, 64]), seconds=st.floats(0, 400))
    def send(self, pool: str, rows: int, seconds: float) -> None:
        self.now += seconds
        self._record_transition(
            job_transitions.pick_job(self.connection, PickRequest(pool, ("embedded",), 3), rows, 1.0, self.now)
        )

    @rule(job_index=st.integers(0, 9), pool=st.sampled_from(POOLS))
    def move_away(self, job_index: int, pool: str) -> None:
        job_admin.reroute_job(self.connection, self._job(job_index), pool, self.now)

    @rule(
        job_index=st.integers(0, 9),
        epoch=st.integers(0, 4),
        step=st.integers(0, 45),
        kind=st.sampled_from(["start", "requeue", "finish", "fail", "cancel"]),
        cost=st.floats(0, 1000),
    )
    def report(self, job_index: int, epoch: int, step: int, kind: str, cost: float) -> None:
        self.reports.append((kind, self._job(job_index), epoch, step, cost))
        self._apply(*self.reports[-1])

    @precondition(lambda self: self.reports)
    @rule(job_index=st.integers(0, 99))
    def repeat_report(self, job_index: int) -> None:
        kind, job, *arguments = self.reports[job_index % len(self.reports)]
        before = self._row(job)
        self._apply(kind, job, *arguments)
        if before["state"] in END_STATES or before["epoch"] > arguments[0]:
            assert self._row(job) == before, "a report of an ended job or an older epoch changes nothing"

    def _row(self, job: str) -> dict[str, Any]:
        return dict(self.connection.execute(select(jobs).where(jobs.c.id == job)).mappings().one())

    def _apply(self, kind: Any, job: str, epoch: int, step: int, cost: float) -> None:
        if kind == "start":
            transition = job_transitions.start_job(self.connection, job, epoch, "w", step, self.now)
        elif kind == "requeue":
            transition = job_transitions.requeue_job(
                self.connection, job, self.now, step=step, audit_note="w", epoch=epoch
            )
        else:
            transition = job_transitions.end_job(self.connection, kind, job, self.now, cost, epoch=epoch)
        self._record_transition(transition)

    @rule(job_index=st.integers(0, 9))
    def request_cancel(self, job_index: int) -> None:
        self._record_transition(job_transitions.request_cancel(self.connection, self._job(job_index), self.now)[1])

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "connection"):
            return
        rows = [dict(row) for row in self.connection.execute(select(jobs)).mappings()]
        self._check_ends(rows)
        self._check_counts(rows)
        for row in rows:
            self._check_audit(row)

    def _check_ends(self, rows: list[dict[str, Any]]) -> None:
        ended_jobs = {row["id"]: (row["state"], row["charged"]) for row in rows if row["state"] in END_STATES}
        assert ended_jobs == self.end_states
        assert all(0 <= row["charged"] <= row["cost"] for row in rows)

    def _check_counts(self, rows: list[dict[str, Any]]) -> None:
        expected: dict[str, list[float]] = {}
        for row in rows:
            for level in ancestor_paths(row["account"]):
                queued, active, charged_cost = expected.setdefault(level, [0, 0, 0.0])
                state = row["state"]
                expected[level] = [
                    queued + (state == "queued"),
                    active + (state in ACTIVE_STATES),
                    charged_cost + row["billed"],
                ]
        for one in self.connection.execute(select(accounts)):
            queued, active, charged_cost = expected.get(one.path, [0, 0, 0.0])
            assert (one.queued, one.active) == (queued, active), one.path
            if one.parent == "":  # on lower levels, an idle member comes back at the present virtual time
                assert one.virtual == pytest.approx(charged_cost, abs=1e-6)

    def _check_audit(self, row: dict[str, Any]) -> None:
        """The audit of a job follows the table of transitions to its present state."""
        lines = self.connection.execute(select(audit).where(audit.c.job == row["id"]).order_by(audit.c.id)).all()
        assert (lines[0].source, lines[-1].target, lines[-1].epoch) == ("new", row["state"], row["epoch"])
        for last, line in itertools.pairwise(lines):
            assert line.source == last.target
            is_pool_change = line.source == line.target == "queued"  # into another pool
            matches = [one for one in TRANSITIONS.values() if line.source in one.sources and one.target == line.target]
            assert is_pool_change or matches
            assert line.epoch >= last.epoch
        assert sum(line.target in END_STATES for line in lines) == (row["state"] in END_STATES)
        requeued_epochs = [line.epoch for line in lines if line.source in ACTIVE_STATES and line.target == "queued"]
        assert len(requeued_epochs) == len(set(requeued_epochs)), (
            "a claim is handed back once, however often its report comes"
        )


Jobs.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestJobs = Jobs.TestCase


def _writes_a_state(node: ast.AST) -> bool:
    """Tells whether a call writes a state: `.values(state=…)` or `{"state": …}`, the only ways in this code base."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
        return any(word.arg == "state" for word in node.keywords)
    keys = node.keys if isinstance(node, ast.Dict) else []
    return any(isinstance(key, ast.Constant) and key.value == "state" for key in keys)


def test_only_one_place_writes_the_state_of_a_job():
    """Its UPDATE names the states that a job may leave. New jobs come from `NewJob.to_row`."""
    files = [*STORE.rglob("*.py"), *STORE.parent.glob("features/*/store.py")]
    sources = {path.relative_to(STORE.parent).as_posix(): path.read_text() for path in files}
    matches = {name for name, source in sources.items() if any(map(_writes_a_state, ast.walk(ast.parse(source))))}
    # states of deliveries and of changes, in tables of their own
    matches -= {"store/transitions/amendments.py", "features/webhooks/store.py"}
    assert matches == {"store/transitions/job_writes.py", "store/jobs/records.py"}
    assert not [name for name, source in sources.items() if "update jobs" in source.lower()]
