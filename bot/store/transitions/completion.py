"""Records incoming pictures, and the end of their job if none is missing, in one transaction.

A transaction for each picture would cost more than the picture. Works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection

from bot.store.jobs import queries
from bot.store.jobs.records import JobRecord, StoredPicture, Transition, decode_record
from bot.store.transitions import amendments, job_transitions, picture_writes
from engine.contract import Amendment, Recipe, UpscaleMethod, encode


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
        picture_writes.insert_pictures(connection, new_pictures, epoch, now, method)
        if new_pictures
        else picture_writes.lock_open_job(connection, job, epoch)
    )
    if row is None or stats is None:
        return row is not None, None
    old_record = decode_record(row)
    if old_record.find_lost_changes(stats.amendments):
        picture_writes.delete_results(connection, job)
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
    picture_writes.delete_other_images(connection, present, job_record)
    return True, job_transitions.end_job(connection, "finish", job, now, cost, epoch=epoch, **values)


def _take_result(connection: Connection, job_record: JobRecord, stats: JobStats) -> JobRecord:
    """Return the record with the recipe of the finished pictures. Raises ValueError for a false choice or change."""
    if stats.amendments or _has_amendments(job_record):
        job_record = replace_fields(job_record, task=amendments.check_held(connection, job_record, stats.amendments))
    if isinstance(job_record.task, Recipe) and job_record.task.needs_choice:
        job_record = replace_fields(job_record, task=_record_choice(job_record.task, stats.chosen_candidates))
    return job_record


def _has_amendments(job_record: JobRecord) -> bool:
    return isinstance(job_record.task, Recipe) and bool(job_record.task.amendments)


def _record_choice(recipe: Recipe, chosen: tuple[int, ...]) -> Recipe:
    """Return the recipe with its chosen candidates: from now on it makes these pictures, without a choice."""
    if not len(chosen) == len(set(chosen)) == recipe.count or max(chosen) >= recipe.candidate_count:
        raise ValueError(f"the worker chose the candidates {chosen} for {recipe.count} of {recipe.candidate_count}")
    return replace(recipe, chosen_candidates=chosen)
