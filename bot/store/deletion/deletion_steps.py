"""Deletes jobs' pictures in two steps, so that a crash leaves no file: mark the jobs, then delete picture by picture.

A row in `pictures` of a deleted job says that its file may still exist. Each function works inside its caller's
transaction; `bot.services.moderation.moderation` deletes the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from bot.store.deletion import input_cleanup
from bot.store.jobs.queries import list_parts
from bot.store.jobs.records import StoredPicture
from bot.store.moderation import incidents
from bot.store.schema.tables import destinations, favourites, jobs, pictures

MAX_LEFTOVERS = 500  # most leftovers in one query


def list_jobs_of_picture(connection: Connection, job: str) -> list[str]:
    """Return the job and every upscale of its pictures, in any state: they show the same picture.

    All jobs of an interpolation are deleted together, since its film shows the pictures of each.
    """
    job_ids = [job, *(part.id for part in list_parts(connection, job) if part.id != job)]
    frontier = list(job_ids)
    while frontier:
        children_query = select(jobs.c.id).where(jobs.c.parent.in_(frontier), jobs.c.action == "upscale")
        frontier = [row.id for row in connection.execute(children_query) if row.id not in job_ids]
        job_ids += frontier
    return job_ids


def mark_deleted(connection: Connection, ids: Sequence[str], actor: tuple[str, str], now: float) -> list[str]:
    """Mark jobs as deleted, cancel their deliveries, and return those that were not deleted before. Other members' jobs
    that began with one of them keep their results and lose their input.

    Writes one incident, for the first job. A member who deletes their own job causes one only if it was reported: else
    they could flood the moderators' list.
    """
    marked_jobs, was_reported = mark_without_incident(connection, ids, now)
    deleted_ids = list(marked_jobs)
    input_cleanup.release_inputs(connection, deleted_ids)
    if ids[0] in marked_jobs and (was_reported or marked_jobs[ids[0]].member != actor[0]):
        other_actions = [row.action for job, row in marked_jobs.items() if job != ids[0]]
        upscale_count = other_actions.count("upscale")
        interpolation_count = len(other_actions) - other_actions.count("upscale")
        text = " and ".join(
            [f"with {upscale_count} upscaled"] * bool(upscale_count)
            + [f"{interpolation_count} more of its interpolation"] * bool(interpolation_count)
        )
        incidents.write_incident(connection, marked_jobs[ids[0]].guild, "deleted", *actor, text, now, ids[0])
    return deleted_ids


def mark_without_incident(
    connection: Connection, ids: Sequence[str], now: float
) -> tuple[dict[str, Row[*tuple[Any, ...]]], bool]:
    """Do the same as `mark_deleted`, without an incident. Return each job's guild, member and action, and whether one
    was reported.
    """
    statement = update(jobs).where(jobs.c.id.in_(ids), jobs.c.deleted.is_(None)).values(deleted=now)
    marked_jobs: dict[str, Row[*tuple[Any, ...]]] = {
        row.id: row
        for row in connection.execute(statement.returning(jobs.c.id, jobs.c.guild, jobs.c.member, jobs.c.action))
    }
    deleted_ids = list(marked_jobs)
    connection.execute(favourites.delete().where(favourites.c.job.in_(deleted_ids)))
    connection.execute(
        update(destinations)
        .where(destinations.c.job.in_(deleted_ids), destinations.c.delivered.is_(None))
        .values(delivered=now)
    )
    return marked_jobs, incidents.close_incidents(connection, deleted_ids, now)


def list_leftover_files(connection: Connection, ids: Sequence[str] | None = None) -> list[StoredPicture]:
    """Return pictures and ladders of deleted jobs (None: of any) whose files may still exist."""
    deleted_ids_query = select(jobs.c.id).where(jobs.c.deleted.is_not(None))
    deleted_ids_query = deleted_ids_query if ids is None else deleted_ids_query.where(jobs.c.id.in_(ids))
    query = select(pictures).where(pictures.c.job.in_(deleted_ids_query)).limit(MAX_LEFTOVERS)
    return [StoredPicture(**row) for row in connection.execute(query).mappings()]


def is_unused(connection: Connection, sha256: str) -> bool:
    """Return True if no undeleted job has a picture of this content."""
    query = select(pictures.c.job).join(jobs, jobs.c.id == pictures.c.job)
    return connection.execute(query.where(pictures.c.sha256 == sha256, jobs.c.deleted.is_(None))).first() is None


def find_unreferenced(connection: Connection, hashes: Sequence[str]) -> list[str]:
    """Return the contents that no job names, deleted or not."""
    query = select(pictures.c.sha256).where(pictures.c.sha256.in_(hashes))
    known_hashes = set(connection.execute(query).scalars())
    return [sha256 for sha256 in hashes if sha256 not in known_hashes]


def delete_picture_row(connection: Connection, picture: StoredPicture) -> None:
    """Drop the row of a picture whose file was deleted or belongs to another job."""
    conditions = (pictures.c.job == picture.job, pictures.c.image == picture.image, pictures.c.kind == picture.kind)
    connection.execute(pictures.delete().where(*conditions, pictures.c.sha256 == picture.sha256))
