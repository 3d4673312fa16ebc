"""Job transitions in SQL: each changes the job, its accounts and the audit together, or nothing.

Every function works inside its caller's transaction. `bot.domain.job_states` defines the transitions; here each is one
UPDATE … WHERE state IN (…) AND epoch <= …. So a stale or duplicate message changes and charges nothing. Incoming
pictures and the end of their job are one transaction: one for each picture would cost more than the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, func, select, update

from bot.domain.job_states import ACTIVE_STATES, TRANSITIONS, TransitionKind, is_end
from bot.store.fairness.accounts import (
    PickRequest,
    add_cost,
    adjust_counts,
    count_rows_in_use,
    enter_accounts,
    find_longest_waiting_job,
    find_next_job,
    mark_served,
    reset_wait,
)
from bot.store.fairness.ledger import Ledger
from bot.store.jobs import queries
from bot.store.jobs.queries import list_by_key
from bot.store.jobs.records import RELAXED_TIER, JobRecord, NewJob, StoredPicture, Transition, decode_record
from bot.store.schema.tables import audit_lines, destinations, jobs, pictures
from bot.store.transitions import amendments
from bot.store.transitions.amendments import refuse_waiting
from bot.store.transitions.job_writes import (
    apply_transition,
    delete_other_images,
    delete_results,
    insert_pictures,
    lock_job,
    lock_open_job,
    write_audit_line,
)
from engine.contract import Amendment, Recipe, UpscaleMethod, encode

AdmissionCheck = Callable[[Sequence[NewJob], Ledger], Sequence[NewJob]]
POISON_ATTEMPTS = 3  # attempts without progress
MAX_ATTEMPTS = 20  # in total: a worker may report false progress
TOO_MANY_ATTEMPTS = f"It was tried {MAX_ATTEMPTS} times and never finished."
_INSERT_JOB = jobs.insert().returning(jobs)
_INSERT_DESTINATION = destinations.insert()
_INSERT_INPUTS = pictures.insert()
MAX_OVERRUN = 10.0  # a worker may bill at most this many times the estimate in the fair order


def admit_jobs(
    connection: Connection, new_jobs: Sequence[NewJob], key: str | None, decide: AdmissionCheck, now: float
) -> tuple[list[JobRecord], bool]:
    """Insert the jobs that `decide` returns, with their destinations; True: they are new.

    `decide` reads the ledger, and raises `UserError` to insert none. A known idempotency `key` returns its earlier
    jobs, and False.
    """
    if key is not None and (earlier_jobs := list_by_key(connection, key)):
        return earlier_jobs, False
    return insert_jobs(connection, decide(new_jobs, Ledger(connection, new_jobs[0].member, now)), key), True


def insert_jobs(connection: Connection, new_jobs: Sequence[NewJob], key: str | None) -> list[JobRecord]:
    """Insert new jobs as queued, with their destinations and input pictures."""
    inserted: list[JobRecord] = []
    for ordinal, new_job in enumerate(new_jobs):
        values = new_job.to_row(key, ordinal)
        row = connection.execute(_INSERT_JOB, values).mappings().one()
        destination_row = {
            "job": new_job.id,
            "role": "answer",
            "kind": new_job.destination.kind,
            "where": dict(new_job.destination.address),
            "message": "",
            "reason": "",
        }
        connection.execute(_INSERT_DESTINATION, destination_row)
        enter_accounts(connection, row["account"], row["weight"], new_job.created)
        adjust_counts(connection, row["account"], queued=1)
        if input_rows := new_job.input_rows():
            connection.execute(_INSERT_INPUTS, input_rows)
        write_audit_line(connection, row, "new", new_job.created, new_job.action)
        inserted.append(decode_record(row))
    return inserted


def make_transition(
    connection: Connection,
    kind: TransitionKind,
    job: str,
    now: float,
    *,
    epoch: int | None = None,
    audit_note: str = "",
    **values: object,
) -> Transition | None:
    """Make one transition. None: there is no such job, its state does not allow it, or a newer epoch has it."""
    result = apply_transition(connection, kind, job, now, epoch=epoch, audit_note=audit_note, **values)
    return None if result is None else Transition(decode_record(result[0]), result[1])


def end_job(
    connection: Connection,
    kind: TransitionKind,
    job: str,
    now: float,
    actual_cost: float | None,
    *,
    done_share: float = 1.0,
    epoch: int | None = None,
    audit_note: str = "",
    **values: object,
) -> Transition | None:
    """End a job, and settle its charge to `actual_cost` device-seconds. Happens at most once.

    None: `done_share` of the whole reserve, without that of changes that no worker has answered.

    A member never pays more than was reserved. The fair order counts the real cost, at most `MAX_OVERRUN` estimates.
    Changes that no worker has answered are refused, and their reserve is given back.
    """
    assert is_end(TRANSITIONS[kind].target)
    transition = make_transition(
        connection, kind, job, now, epoch=epoch, audit_note=audit_note, ended=now, cancelling=False, **values
    )
    if transition is None:
        return None
    refused_cost = refuse_waiting(connection, job)
    job_record = replace(transition.record, cost=max(0.0, transition.record.cost - refused_cost))
    fair_cost = job_record.cost * done_share if actual_cost is None else min(actual_cost, MAX_OVERRUN * job_record.cost)
    charged = 0.0 if job_record.tier == RELAXED_TIER else min(fair_cost, job_record.cost)
    statement = update(jobs).where(jobs.c.id == job).values(cost=job_record.cost, charged=charged, billed=fair_cost)
    add_cost(connection, job_record.account, fair_cost - job_record.billed)
    row = connection.execute(statement.returning(jobs)).mappings().one()
    return Transition(decode_record(row), transition.old_state)


def pick_job(
    connection: Connection, request: PickRequest, rows: int, overbook_share: float, now: float
) -> Transition | None:
    """Mark the next job in fair order as sent if it fits. `rows`: all that the pool's workers take at once.

    The head of the order waits until it fits. Only these may pass it, or large jobs would starve:

    1. now and then, a job of the member who has waited longest for a turn (`bot.policy.fair_queue`);
    2. for a limited time, a job whose model is in memory, if the head's is not;
    3. a job of a member with no active job, if the head does not fit.

    The jobs of 1 and 3 may exceed `rows` by up to `overbook_share` × `rows`. Without that, the jobs of 3 would always
    fill these rows before the member of 1.
    """
    if rows <= 0:
        return None
    rows_in_use = max(0, count_rows_in_use(connection, request.pool) - request.paused_rows)
    capacity = _Capacity(rows, rows_in_use, overbook_share)
    bypass = request.bypass
    if bypass.is_overdue_turn(request.pool):
        row = find_longest_waiting_job(connection, request, bypass.overdue_before(now))
        if row is not None:
            has_room = capacity.can_fit(row, with_overbooking=True)
            return _send_picked(connection, request, row, now, is_overdue=True) if has_room else None
    row = find_next_job(connection, request)
    if row is not None:
        row = _prefer_loaded_model(connection, request, row, now)
        if not capacity.can_fit(row):
            row = find_next_job(connection, replace(request, newcomers_only=True))
            row = row if row is not None and capacity.can_fit(row, with_overbooking=True) else None
    return None if row is None else _send_picked(connection, request, row, now)


@dataclass(frozen=True)
class _Capacity:
    """The rows of a pool: total and taken."""

    rows: int
    rows_in_use: int
    overbook_share: float

    def can_fit(self, row: RowMapping, *, with_overbooking: bool = False) -> bool:
        """Return True if the job fits. A job larger than the pool gets the whole pool."""
        limit = self.rows * (1 + self.overbook_share) if with_overbooking else self.rows
        return self.rows_in_use + min(row["rows"], self.rows) <= limit


def _prefer_loaded_model(connection: Connection, request: PickRequest, head: RowMapping, now: float) -> RowMapping:
    """Return the head of the order, or for a limited time a job whose model is in memory."""
    if not _needs_model_load(request, head) or not request.bypass.can_bypass(head["id"], now):
        return head
    return find_next_job(connection, replace(request, models=request.loaded_models or ())) or head


def _needs_model_load(request: PickRequest, row: RowMapping) -> bool:
    """Whether no worker with room has the job's model in memory. False if that is irrelevant."""
    return request.loaded_models is not None and row["model"] not in ("", *request.loaded_models)


def _send_picked(
    connection: Connection, request: PickRequest, row: RowMapping, now: float, *, is_overdue: bool = False
) -> Transition | None:
    transition = _bill_and_send(connection, row, now)
    if transition is not None:
        reset_wait(connection, row["account"], now)
        model_to_load = row["model"] if _needs_model_load(request, row) else ""
        request.bypass.note_dispatch(request.pool, row["id"], now, loads_model=model_to_load, was_overdue=is_overdue)
    return transition


def _bill_and_send(connection: Connection, row: RowMapping, now: float) -> Transition | None:
    """Bill and send a job. A cost billed for an earlier attempt is not billed again."""
    mark_served(connection, row["account"])
    add_cost(connection, row["account"], max(0.0, row["cost"] - row["billed"]))
    return make_transition(
        connection,
        "send",
        row["id"],
        now,
        sent=now,
        billed=max(row["cost"], row["billed"]),
        audit_note=f"attempt {row['attempt']}",
    )


def start_job(
    connection: Connection,
    job: str,
    epoch: int,
    worker: str,
    step: int,
    now: float,
    *,
    preview_step: int = 0,
    snapshots_lost: bool = False,
    is_suspect: bool = True,
) -> Transition | None:
    """Record a worker's claim at `step`, or fail the job: after 3 attempts without progress, or 20 in all.

    `is_suspect`: False if the lost workers are no evidence against the job; it is then tried again.

    `preview_step`: the furthest step that previews have shown, which is progress too. `snapshots_lost`: since the last
    claim the broker lost its store and the job's snapshots; that does not count as an attempt without progress.
    """
    old_row = lock_job(connection, job)
    if old_row is None or _is_requeued_already(old_row, epoch):
        return None
    is_retry = old_row["state"] == "running" and old_row["epoch"] != epoch  # a requeued attempt is counted already
    reached_step = min(max(step, preview_step), decode_record(old_row).steps)
    idle_attempts = old_row["barren"] if snapshots_lost else _count_idle_attempts(old_row, reached_step, is_retry)
    if is_suspect and idle_attempts >= POISON_ATTEMPTS and old_row["epoch"] <= epoch:
        return _fail_poison(connection, old_row, now, f"again on {worker}")
    if old_row["epoch"] <= epoch and _count_other_starts(connection, job, epoch) >= MAX_ATTEMPTS:
        return _fail_poison(connection, old_row, now, f"again on {worker}", TOO_MANY_ATTEMPTS)
    return make_transition(
        connection,
        "start",
        job,
        now,
        epoch=epoch,
        audit_note=worker,
        worker=worker,
        step=reached_step if snapshots_lost else max(reached_step, old_row["step"]),
        barren=idle_attempts,
        started=old_row["started"] or now,
    )


def requeue_job(
    connection: Connection,
    job: str,
    now: float,
    *,
    step: int,
    audit_note: str,
    reason: str = "",
    epoch: int | None = None,
    is_suspect: bool = True,
) -> Transition | None:
    """Queue the job again as its next attempt, or fail it: after 3 without progress, or 20 in all.

    `step`: the furthest step known. `reason`: the sentence for the member if it fails. `is_suspect`: False if nothing
    points at the job; then the first limit does not hold.
    """
    old_row = lock_job(connection, job)
    if old_row is None or old_row["state"] not in ACTIVE_STATES:
        return None
    if epoch is not None and _is_requeued_already(old_row, epoch):
        return None
    if old_row["cancelling"]:
        return end_job(
            connection,
            "cancel",
            job,
            now,
            None,
            done_share=_done_fraction(old_row, step),
            epoch=epoch,
            audit_note=audit_note,
        )
    idle_attempts = _count_idle_attempts(old_row, step, True)
    if is_suspect and idle_attempts >= POISON_ATTEMPTS:
        return _fail_poison(connection, old_row, now, audit_note, reason, epoch)
    if old_row["attempt"] >= MAX_ATTEMPTS:
        return _fail_poison(connection, old_row, now, audit_note, TOO_MANY_ATTEMPTS, epoch)
    return make_transition(
        connection,
        "requeue",
        job,
        now,
        epoch=epoch,
        audit_note=audit_note,
        attempt=old_row["attempt"] + 1,
        worker="",
        step=max(step, old_row["step"]),
        barren=idle_attempts,
    )


def request_cancel(connection: Connection, job: str, now: float) -> tuple[JobRecord | None, Transition | None]:
    """Request a cancel: a waiting job ends at once, a sent one is flagged for its worker."""
    old_row = lock_job(connection, job)
    if old_row is None:
        return None, None
    if old_row["state"] == "queued":
        share = _done_fraction(old_row, 0)
        transition = end_job(connection, "cancel", job, now, None, done_share=share, audit_note="cancelled on request")
        return (transition.record if transition else None), transition
    if old_row["state"] in ACTIVE_STATES:
        statement = update(jobs).where(jobs.c.id == job).values(cancelling=True).returning(jobs)
        return decode_record(connection.execute(statement).mappings().one()), None
    return decode_record(old_row), None


def _is_requeued_already(old_row: RowMapping, epoch: int) -> bool:
    """Return True if the job of this claim was requeued already, so all its reports are repeats."""
    return old_row["epoch"] == epoch and old_row["state"] in ("queued", "sent")


def _count_idle_attempts(old_row: RowMapping, step: int, is_retry: bool) -> int:
    """Count the attempts without progress. Any progress resets the count."""
    return 0 if step > old_row["step"] else old_row["barren"] + int(is_retry)


def _count_other_starts(connection: Connection, job: str, epoch: int) -> int:
    conditions = (audit_lines.c.job == job, audit_lines.c.target == "running", audit_lines.c.epoch != epoch)
    return int(connection.execute(select(func.count(audit_lines.c.epoch.distinct())).where(*conditions)).scalar_one())


def _fail_poison(
    connection: Connection, old_row: RowMapping, now: float, audit_note: str, reason: str = "", epoch: int | None = None
) -> Transition | None:
    member_text = reason or f"It was tried {POISON_ATTEMPTS} times and never got further."
    return end_job(
        connection,
        "fail",
        old_row["id"],
        now,
        0.0,
        epoch=epoch,
        audit_note=f"poison: {audit_note}",
        reason=member_text,
        blame="worker",
        barren=POISON_ATTEMPTS,
    )


def _done_fraction(old_row: RowMapping, step: int) -> float:
    return decode_record(old_row).find_done_share(max(step, old_row["step"]))


@dataclass(frozen=True)
class JobStats:
    """A worker's figures for a finished job: `cost` in device-seconds, `seconds`, and milliseconds per step.

    `chosen_candidates`: the candidate that each picture is, where the judge chose. `amendments`: the changes that hold
    in the pictures.
    """

    cost: float
    seconds: float
    ms_per_step: float
    chosen_candidates: tuple[int, ...] = ()
    amendments: tuple[Amendment, ...] = ()


def record_pictures(
    connection: Connection,
    job: str,
    epoch: int,
    new_pictures: Sequence[StoredPicture],
    stats: JobStats | None,
    now: float,
    *,
    method: UpscaleMethod | None = None,
) -> tuple[bool, Transition | None]:
    """Record pictures of one job, and finish it if `stats` is given and none is missing.

    False: the job is unknown, deleted or over, or a newer epoch has it. `method`: how the worker made an upscale.
    The finished job's recipe names the chosen candidates, and the changes that hold. Raises ValueError if they are none
    of its own. Pictures without a change that members were told of do not finish the job, and are deleted.
    """
    row = (
        insert_pictures(connection, new_pictures, epoch, now, method)
        if new_pictures
        else lock_open_job(connection, job, epoch)
    )
    if row is None or stats is None:
        return row is not None, None
    old_record = decode_record(row)
    if old_record.find_lost_changes(stats.amendments):
        delete_results(connection, job)
        return True, None
    job_record = _take_result(connection, old_record, stats)
    present = queries.list_pictures(connection, [job])
    if job_record.find_missing(present):
        return True, None
    values: dict[str, Any] = {"seconds": stats.seconds, "ms_per_step": stats.ms_per_step, "step": job_record.steps}
    if job_record.task != old_record.task:
        values["task"] = encode(job_record.task)
    cost: float | None = stats.cost
    if stats.amendments or _has_amendments(old_record):
        amendments.record_held(connection, job_record, stats.amendments)
        cost = None  # the reserve is the price of what holds; a worker knows only by how much the rows have grown
    delete_other_images(connection, present, job_record)
    return True, end_job(connection, "finish", job, now, cost, epoch=epoch, **values)


def _take_result(connection: Connection, job_record: JobRecord, stats: JobStats) -> JobRecord:
    """Return the record with the recipe of the finished pictures. Raises ValueError for a false choice or change."""
    if stats.amendments or _has_amendments(job_record):
        job_record = replace(job_record, task=amendments.check_held(connection, job_record, stats.amendments))
    if isinstance(job_record.task, Recipe) and job_record.task.needs_choice:
        job_record = replace(job_record, task=_record_choice(job_record.task, stats.chosen_candidates))
    return job_record


def _has_amendments(job_record: JobRecord) -> bool:
    return isinstance(job_record.task, Recipe) and bool(job_record.task.amendments)


def _record_choice(recipe: Recipe, chosen: tuple[int, ...]) -> Recipe:
    """Return the recipe with its chosen candidates: from now on it makes these pictures, without a choice."""
    if not len(chosen) == len(set(chosen)) == recipe.count or max(chosen) >= recipe.candidate_count:
        raise ValueError(f"the worker chose the candidates {chosen} for {recipe.count} of {recipe.candidate_count}")
    return msgspec.structs.replace(recipe, chosen_candidates=chosen)
