"""The changes that members ask for while a job runs: rows and read queries. Each works inside its caller's transaction.

`bot.store.transitions.amendments` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import BindParameter, Connection, RowMapping, bindparam, func, select

from bot.domain.job_states import OPEN_STATES
from bot.domain.steering import AmendmentKind, AmendmentState, AmendmentView
from bot.store.schema.tables import amendments, jobs
from engine.contract import Amendment, Change, SetConcepts, SetGuidance, SetNegative, convert

_JOBS: BindParameter[Any] = bindparam("jobs", expanding=True)
_SELECT_OF_JOBS = select(amendments).where(amendments.c.job.in_(_JOBS)).order_by(amendments.c.job, amendments.c.number)
_SELECT_WAITING = _SELECT_OF_JOBS.where(amendments.c.state == "waiting")  # each time that changes are sent
OF_WAITING = (amendments.c.job == bindparam("of_job"), amendments.c.state == "waiting")
_SUM_WAITING = select(func.coalesce(func.sum(amendments.c.cost), 0.0)).where(*OF_WAITING)
_SELECT_RECIPE_COST = select(jobs.c.cost - _SUM_WAITING.scalar_subquery()).where(jobs.c.id == bindparam("of_job"))


@dataclass(frozen=True)
class NewAmendment:
    """A change that is not asked for yet. `cost`: the device-seconds to reserve for it."""

    change: Change
    text: str
    cost: float


@dataclass(frozen=True)
class AmendmentRecord:
    """A row of the table `amendments`, which explains its columns."""

    job: str
    number: int
    member: str
    member_name: str
    at: float
    key: str | None
    state: AmendmentState
    step: int | None
    reason: str
    change: Change
    text: str
    cost: float

    def to_amendment(self, step: int) -> Amendment:
        """Return it as a recipe has it: from its own step on, or from `step` while it waits."""
        return Amendment(self.number, step if self.step is None else self.step, self.change)

    def to_view(self, total_steps: int) -> AmendmentView:
        return AmendmentView(
            self.number,
            self.state,
            self.step,
            total_steps,
            self.reason,
            self.member,
            self.member_name,
            self.text,
            self.at,
            _name_kind(self.change),
        )


def _name_kind(change: Change) -> AmendmentKind:
    match change:
        case SetConcepts():
            return "words"
        case SetNegative():
            return "negative"
        case SetGuidance():
            return "guidance"
        case _:
            return "images"


def encode_change(change: Change) -> dict[str, Any]:
    """Return a change as its column has it."""
    return cast("dict[str, Any]", msgspec.to_builtins(change))


def decode_amendment(row: RowMapping) -> AmendmentRecord:
    """Convert a row of the table `amendments`."""
    values: dict[str, Any] = {str(name): value for name, value in row.items()}
    values["change"] = convert(values["change"], cast("type[Change]", Change))
    return AmendmentRecord(**values)


def list_amendments(connection: Connection, job: str) -> list[AmendmentRecord]:
    """Return every change that was asked for of a job, in order."""
    return [decode_amendment(row) for row in connection.execute(_SELECT_OF_JOBS, {"jobs": [job]}).mappings()]


def list_waiting(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[AmendmentRecord]]:
    """Return the changes of these jobs that no worker has answered, in order, by job."""
    by_job: dict[str, list[AmendmentRecord]] = {}
    for row in connection.execute(_SELECT_WAITING, {"jobs": list(job_ids)}).mappings():
        by_job.setdefault(row["job"], []).append(decode_amendment(row))
    return by_job


def sum_waiting_costs(connection: Connection, job: str) -> float:
    """Return the device-seconds that are reserved for changes that no worker has answered."""
    return float(connection.execute(_SUM_WAITING, {"of_job": job}).scalar_one())


def read_recipe_cost(connection: Connection, job: str) -> float:
    """Return what is reserved for a job's recipe in device-seconds, without the changes that wait; 0: unknown job."""
    return max(0.0, connection.execute(_SELECT_RECIPE_COST, {"of_job": job}).scalar_one_or_none() or 0.0)


def list_jobs_with_waiting(connection: Connection) -> list[str]:
    """Return the open jobs with changes that no worker has answered."""
    query = select(amendments.c.job).join(jobs, jobs.c.id == amendments.c.job)
    return list(
        connection.execute(
            query.where(amendments.c.state == "waiting", jobs.c.state.in_(OPEN_STATES)).distinct()
        ).scalars()
    )
