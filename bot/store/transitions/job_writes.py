"""Writes to one job: its state, with accounts and audit together; its pictures; a hand-back; a model's profile.

`apply_transition` is the only code that writes a job's state. A transition that `bot.domain.job_states` does not allow
changes nothing. Every function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from bot.domain.job_states import ACTIVE_STATES, OPEN_STATES, TRANSITIONS, JobState, TransitionKind
from bot.store.deletion.deletion_steps import RESULT_KINDS
from bot.store.fairness.accounts import adjust_counts
from bot.store.jobs.records import JobRecord, StoredPicture
from bot.store.moderation.incidents import write_held_incident
from bot.store.schema.tables import audit_lines, jobs, models, pictures
from engine.contract import ModelProfile, Recipe, Task, UpscaleMethod, UpscaleTask, decode, encode

_SELECT_LOCKED = select(jobs).where(jobs.c.id == bindparam("job")).with_for_update()
_INSERT_AUDIT_LINE = audit_lines.insert()


def apply_transition(
    connection: Connection,
    kind: TransitionKind,
    job: str,
    now: float,
    *,
    epoch: int | None = None,
    audit_note: str = "",
    **values: object,
) -> tuple[RowMapping, JobState] | None:
    """Apply the transition. Return the new row and the old state. None: no such job, its state does not allow it, or a
    newer epoch has it.
    """
    transition = TRANSITIONS[kind]
    old_row = lock_job(connection, job)
    if old_row is None:
        return None
    fence_params = {} if epoch is None else {"fence": epoch}
    values |= {} if epoch is None else {"epoch": epoch}
    value_params = {f"new_{name}": value for name, value in values.items()}
    result = connection.execute(
        _build_update(kind, tuple(values), bool(fence_params)), {"job": job} | fence_params | value_params
    )
    row = result.mappings().first()
    if row is None:
        return None
    _update_counts(connection, row["account"], old_row["state"], transition.target)
    write_audit_line(connection, row, old_row["state"], now, audit_note)
    return row, old_row["state"]


@cache
def _build_update(kind: TransitionKind, names: tuple[str, ...], is_fenced: bool) -> ReturningUpdate[Any]:
    """Build the UPDATE. Cached for each set of arguments: building takes longer than running."""
    transition = TRANSITIONS[kind]
    statement = update(jobs).where(jobs.c.id == bindparam("job"), jobs.c.state.in_(transition.sources))
    if is_fenced:
        statement = statement.where(jobs.c.epoch <= bindparam("fence"))
    return statement.values(state=transition.target, **{name: bindparam(f"new_{name}") for name in names}).returning(
        jobs
    )


def lock_job(connection: Connection, job: str) -> RowMapping | None:
    """Return the job's row, locked until this transaction ends."""
    return connection.execute(_SELECT_LOCKED, {"job": job}).mappings().first()


def _update_counts(connection: Connection, account: str, source: JobState, target: JobState) -> None:

    def count_state(state: JobState) -> tuple[int, int]:
        return (int(state == "queued"), int(state in ACTIVE_STATES))

    (old_queued, old_active), (new_queued, new_active) = count_state(source), count_state(target)
    adjust_counts(connection, account, queued=new_queued - old_queued, active=new_active - old_active)


def write_audit_line(connection: Connection, row: RowMapping, source: str, now: float, audit_note: str) -> None:
    """Write one audit line."""
    values = {
        "job": row["id"],
        "at": now,
        "source": source,
        "target": row["state"],
        "attempt": row["attempt"],
        "epoch": row["epoch"],
        "why": audit_note,
    }
    connection.execute(_INSERT_AUDIT_LINE, values)


# Built once: building a statement takes longer than SQLite takes to run it.
_SELECT_OPEN = (
    select(jobs)
    .where(
        jobs.c.id == bindparam("job"),
        jobs.c.epoch <= bindparam("epoch"),
        jobs.c.deleted.is_(None),
        jobs.c.state.in_(OPEN_STATES),
    )
    .with_for_update()
)
_SELECT_VERDICTS = select(pictures.c.image, pictures.c.kind, pictures.c.verdict).where(
    pictures.c.job == bindparam("job")
)
_DELETE_PICTURE = pictures.delete().where(
    pictures.c.job == bindparam("job"), pictures.c.image == bindparam("at"), pictures.c.kind == bindparam("as")
)
_INSERT_PICTURES = pictures.insert()


def insert_pictures(
    connection: Connection,
    new_pictures: Sequence[StoredPicture],
    epoch: int,
    now: float,
    method: UpscaleMethod | None = None,
) -> RowMapping | None:
    """Record pictures and ladders of one job, and return its row. None: it is unknown, over, or a newer epoch has it.

    An upscale's task gets the method really used: a worker without a super-resolver uses Lanczos, and the job's view
    must say so.
    """
    job = new_pictures[0].job
    row = lock_open_job(connection, job, epoch)
    if row is None:
        return None
    slots = {(picture.image, picture.kind) for picture in new_pictures}
    old_verdicts = {
        (known.image, known.kind): known.verdict for known in connection.execute(_SELECT_VERDICTS, {"job": job})
    }
    for image, kind in slots & old_verdicts.keys():
        connection.execute(_DELETE_PICTURE, {"job": job, "at": image, "as": kind})
    connection.execute(_INSERT_PICTURES, [vars(picture) for picture in new_pictures])
    if method is not None:
        _set_upscale_method(connection, job, row["task"], method)
    if row["check"]:
        for one in new_pictures:
            write_held_incident(connection, one, old_verdicts.get((one.image, one.kind)), now)
    return row


def lock_open_job(connection: Connection, job: str, epoch: int) -> RowMapping | None:
    """Return the row of a job that still accepts pictures, locked until this transaction ends."""
    return connection.execute(_SELECT_OPEN, {"job": job, "epoch": epoch}).mappings().first()


def delete_other_images(connection: Connection, present: Sequence[StoredPicture], job_record: JobRecord) -> None:
    """Delete results of images that the finished recipe does not make. `bot.jobs.retention` removes their files."""
    for one in present:
        if one.kind in RESULT_KINDS and one.image not in job_record.final_images:
            connection.execute(_DELETE_PICTURE, {"job": one.job, "at": one.image, "as": one.kind})


def delete_results(connection: Connection, job: str) -> None:
    """Delete all results of a job, which is drawn anew. `bot.jobs.retention` removes their files."""
    connection.execute(pictures.delete().where(pictures.c.job == job, pictures.c.kind.in_(RESULT_KINDS)))


def _set_upscale_method(connection: Connection, job: str, task: bytes, method: UpscaleMethod) -> None:
    old_task = decode(task, cast("type[Task]", Recipe | UpscaleTask))
    if isinstance(old_task, UpscaleTask) and old_task.method != method:
        new_task = encode(msgspec.structs.replace(old_task, method=method))
        connection.execute(update(jobs).where(jobs.c.id == job).values(task=new_task))


def save_model(connection: Connection, model: ModelProfile, pool: str, now: float) -> None:
    """Store a model's profile in place of an older one."""
    connection.execute(models.delete().where(models.c.name == model.name))
    connection.execute(models.insert().values(name=model.name, warm=encode(model), pool=pool, seen=now))


def record_hand_back(connection: Connection, job: str, epoch: int) -> bool:
    """Record that the worker handed the job back: the next start will not count as an attempt without progress.

    False: it did so already, or another worker has the job.
    """
    conditions = (jobs.c.id == job, jobs.c.epoch == epoch, jobs.c.state == "running", jobs.c.worker != "")
    return connection.execute(update(jobs).where(*conditions).values(worker="", barren=jobs.c.barren - 1)).rowcount == 1
