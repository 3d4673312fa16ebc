"""The changes of running jobs: asked for, answered by a worker, and settled when their job ends.

A change and what it does to its job's recipe, rows and cost are one transaction. Works inside its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec
from sqlalchemy import BindParameter, Connection, RowMapping, bindparam, func, select, update

from bot.domain.dto import Member
from bot.domain.job_states import OPEN_STATES
from bot.domain.steering import AmendmentKind, AmendmentState, AmendmentView
from bot.store.fairness.ledger import Ledger
from bot.store.jobs.records import RELAXED_TIER, JobRecord, decode_record
from bot.store.schema.tables import amendments, jobs
from bot.store.transitions.job_writes import lock_job, lock_open_job
from engine.contract import (
    Amendment,
    Change,
    DropImages,
    JobAmended,
    ModelProfile,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    convert,
    count_ending_images,
    count_image_rows,
    encode,
    estimate_cost,
    find_amendments_problem,
    recipe_at_end,
)

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
            AMENDMENT_KINDS[type(self.change)],
        )


AMENDMENT_KINDS: dict[type[Change], AmendmentKind] = {
    SetConcepts: "words",
    SetNegative: "negative",
    SetGuidance: "guidance",
    DropImages: "images",
    SplitImage: "images",
}


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


ENDED_TEXT = "The picture ended before."
MAX_REQUESTS = 256  # changes that may be asked for of one job, refused ones included
AmendmentCheck = Callable[[JobRecord, Sequence[AmendmentRecord], Ledger], Sequence[NewAmendment]]
_REFUSE_WAITING = update(amendments).where(*OF_WAITING).values(state="refused", reason=ENDED_TEXT, cost=0.0)
_INSERT = amendments.insert()
_SELECT_ONE = select(amendments).where(amendments.c.job == bindparam("job"), amendments.c.number == bindparam("number"))


@dataclass(frozen=True)
class AskedAmendments:
    """A job's row, all of its changes, and those among them that one request asked for."""

    job_record: JobRecord
    known: Sequence[AmendmentRecord]
    requested: Sequence[AmendmentRecord]


@dataclass(frozen=True)
class AnsweredAmendment:
    """A change after its answer, and its job's row by then."""

    amendment: AmendmentRecord
    job_record: JobRecord


def ask_for_amendments(
    connection: Connection,
    job: str,
    member: Member,
    author: Member,
    key: str | None,
    decide: AmendmentCheck,
    now: float,
) -> AskedAmendments | None:
    """Write the changes that `decide` returns, and reserve their cost. None: the job is unknown or deleted.

    `decide` gets the job and all of its changes, locked, with the ledger of its author, and raises `UserError` to write
    nothing. A known idempotency `key` returns its earlier changes.
    """
    row = lock_job(connection, job)
    if row is None or row["deleted"] is not None:
        return None
    job_record = decode_record(row)
    known = list_amendments(connection, job)
    if key is not None and (earlier := [each for each in known if each.key == key]):
        return AskedAmendments(job_record, known, earlier)
    new_amendments = decide(job_record, known, Ledger(connection, author, now))
    own = job_record.task.amendments if isinstance(job_record.task, Recipe) else ()  # it may reproduce a steered job
    first_number = 1 + max([0, *(each.number for each in own), *(each.number for each in known)])
    new_records = [
        AmendmentRecord(
            job, number, member.id, member.name[:128], now, key, "waiting", None, "", new.change, new.text, new.cost
        )
        for number, new in enumerate(new_amendments, first_number)
    ]
    for each in new_records:
        connection.execute(_INSERT, {**vars(each), "change": encode_change(each.change)})
    added_cost = sum(each.cost for each in new_records)
    job_record = _update_job(connection, job_record, job_record.cost + added_cost)
    return AskedAmendments(job_record, [*known, *new_records], new_records)


def answer_amendment(
    connection: Connection, answer: JobAmended, model: ModelProfile | None
) -> AnsweredAmendment | None:
    """Record a worker's answer, and what it does to the job. None: it was answered before, or by another claim.

    Only the claim that the job's row knows is asked, so an answer of a newer one is nobody's. `model`: for the price;
    None: the reserved cost stays. Raises ValueError for a change that contradicts the others.
    """
    row = lock_open_job(connection, answer.job, answer.epoch)
    found = _find_amendment(connection, answer.job, answer.number)
    if row is None or row["epoch"] != answer.epoch or found is None or found.state != "waiting":
        return None
    job_record = decode_record(row)
    if answer.step is None or not isinstance(job_record.task, Recipe):
        answered = replace(found, state="refused", reason=answer.reason or "The worker refused it.", cost=0.0)
        job_record = _update_job(connection, job_record, max(0.0, job_record.cost - found.cost))
    else:
        recipe = _add_amendment(job_record.task, Amendment(found.number, answer.step, found.change))
        price = found.cost if model is None else estimate_cost(recipe, model) - estimate_cost(job_record.task, model)
        answered = replace(found, state="made", step=answer.step, cost=0.0)
        job_record = _update_job(connection, job_record, max(0.0, job_record.cost - found.cost + price), recipe)
    _update_amendment(connection, answered)
    return AnsweredAmendment(answered, job_record)


def record_held(connection: Connection, job_record: JobRecord, held: Sequence[Amendment]) -> None:
    """Record, at the end of a job, from which steps its changes hold. None is lost, and `check_held` has passed."""
    steps = {amendment.number: amendment.step for amendment in held}
    for each in list_amendments(connection, job_record.id):
        if each.number in steps and (each.state, each.step) != ("made", steps[each.number]):
            held_one = replace(each, state="made", step=steps[each.number], reason="", cost=0.0)
            _update_amendment(connection, held_one)


def check_held(connection: Connection, job_record: JobRecord, held: Sequence[Amendment]) -> Recipe:
    """Return the recipe of the finished pictures. Raises ValueError where a worker claims what nobody asked for."""
    if not isinstance(job_record.task, Recipe):
        raise ValueError("the worker reports changes of an upscale")
    changes_by_number = {
        each.number: each.change for each in (*job_record.task.amendments, *list_amendments(connection, job_record.id))
    }
    recipe = msgspec.structs.replace(job_record.task, amendments=tuple(held))
    if any(changes_by_number.get(amendment.number) != amendment.change for amendment in held):
        raise ValueError("the worker reports a change that nobody asked for")
    if problem := find_amendments_problem(recipe):
        raise ValueError(f"the worker reports changes that contradict each other: {problem}")
    return recipe


def refuse_waiting(connection: Connection, job: str) -> float:
    """Refuse the changes of an ended job that no worker has answered. Return the cost that was reserved for them."""
    reserved_cost = sum_waiting_costs(connection, job)
    connection.execute(_REFUSE_WAITING, {"of_job": job})
    return reserved_cost


def _find_amendment(connection: Connection, job: str, number: int) -> AmendmentRecord | None:
    row = connection.execute(_SELECT_ONE, {"job": job, "number": number}).mappings().first()
    return None if row is None else decode_amendment(row)


def _add_amendment(recipe: Recipe, amendment: Amendment) -> Recipe:
    """Return the recipe with one more change, in the order of their numbers. Raises ValueError if it contradicts."""
    by_number = sorted((*recipe.amendments, amendment), key=lambda each: each.number)
    amended = msgspec.structs.replace(recipe, amendments=tuple(by_number))
    if problem := find_amendments_problem(amended):
        raise ValueError(f"change {amendment.number} cannot hold from step {amendment.step} on: {problem}")
    return amended


def _update_amendment(connection: Connection, changed: AmendmentRecord) -> None:
    values = {name: getattr(changed, name) for name in ("state", "step", "reason", "cost")}
    is_changed = (amendments.c.job == changed.job, amendments.c.number == changed.number)
    connection.execute(update(amendments).where(*is_changed).values(values))


def _update_job(connection: Connection, job_record: JobRecord, cost: float, recipe: Recipe | None = None) -> JobRecord:
    """Write a job's reserve, and with a recipe its rows. Return the job as it is now: its row is locked."""
    values: dict[str, Any] = {"cost": cost, "charged": 0.0 if job_record.tier == RELAXED_TIER else cost}
    if recipe is not None:
        values |= {"task": encode(recipe), "rows": count_rows_now(recipe)}
    statement = update(jobs).where(jobs.c.id == job_record.id).values(values).returning(jobs)
    return decode_record(connection.execute(statement).mappings().one())


def count_rows_now(recipe: Recipe) -> int:
    """Return the network rows a step of all images that still develop, once all changes hold."""
    return count_ending_images(recipe) * count_image_rows(recipe_at_end(recipe))
