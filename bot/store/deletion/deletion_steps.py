"""Deletes jobs' pictures in two steps, so that a crash leaves no file: mark the jobs, then delete picture by picture.

A row in `pictures` of a deleted job says that its file may still exist; `bot.services.moderation.moderation` deletes
the files. Jobs made from a deleted one (edits, branches, control and reference pictures) lose their input and keep
their results. Retention by age removes no inputs of other jobs.

Charges outlive their jobs until no limit's window counts them, so that deletion restores no quota. What relaxed jobs
took is archived under ids of its own. HMACs with a key of this database replace the ids of member, server and channel;
the key is deleted with the last charge. Each function works inside its caller's transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, update
from sqlalchemy.engine import RowMapping

from bot.policy.limits import MONTH_SECONDS
from bot.store.jobs.queries import list_parts
from bot.store.jobs.records import RELAXED_TIER, StoredPicture
from bot.store.moderation import incidents
from bot.store.schema.tables import archived_charges, charge_keys, destinations, favourites, jobs, pictures

MAX_LEFTOVERS = 500  # most leftovers in one query


def list_jobs_of_picture(connection: Connection, job: str) -> list[str]:
    """Return the job and every upscale of its pictures, in any state: they show the same picture.

    All jobs of an interpolation are deleted together, since its film shows the pictures of each.
    """
    job_ids = [job, *(part.id for part in list_parts(connection, job) if part.id != job)]
    return [*job_ids, *find_descendants(connection, job_ids, jobs.c.action == "upscale")]


def find_descendants(connection: Connection, ids: Sequence[str], *conditions: ColumnElement[bool]) -> list[str]:
    """Return all jobs made from these, directly or indirectly, by jobs that meet the conditions."""
    descendants: list[str] = []
    frontier = list(ids)
    while frontier:
        children = connection.execute(select(jobs.c.id).where(jobs.c.parent.in_(frontier), *conditions)).scalars()
        frontier = [child for child in children if child not in {*ids, *descendants}]
        descendants += frontier
    return descendants


def mark_deleted(connection: Connection, ids: Sequence[str], actor: tuple[str, str], now: float) -> list[str]:
    """Mark jobs as deleted, cancel their deliveries, and return those that were not deleted before. Other members' jobs
    that began with one of them keep their results and lose their input.

    Writes one incident, for the first job. A member who deletes their own job causes one only if it was reported: else
    they could flood the moderators' list.
    """
    marked_jobs, was_reported = mark_without_incident(connection, ids, now)
    deleted_ids = list(marked_jobs)
    release_inputs(connection, deleted_ids)
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


RESULT_KINDS = ("image", "ladder")
INPUT_KINDS = ("input", "mask", "branch", "control", "reference")
CANVAS_KIND = "canvas"  # the canvas of a derived job, kept as a leftover of the job that it shows
PICTURE_ACTIONS = ("edit", "zoom", "pan")
UPLOAD_ACTIONS = ("imagine", "blend", "zoom", "pan")  # actions whose input is the member's: uploaded files, a canvas


def release_inputs(connection: Connection, ids: Sequence[str]) -> None:
    """Remove from jobs that stay every input that came from these jobs: a result, or an uploaded picture."""
    results = _select_hashes(connection, jobs.c.id.in_(ids), pictures.c.kind.in_(RESULT_KINDS))
    canvases = _select_pictures(
        connection, jobs.c.parent.in_(ids), jobs.c.action.in_(PICTURE_ACTIONS), pictures.c.kind == "input"
    )
    orphaned = _find_orphaned(connection, ids, results | {row["sha256"] for row in canvases})
    _attach_canvases(connection, [row for row in canvases if row["sha256"] in orphaned - results])
    _delete_inputs(connection, pictures.c.job.not_in(ids), orphaned)
    uploads = _select_hashes(
        connection, jobs.c.id.in_(ids), jobs.c.action.in_(UPLOAD_ACTIONS), pictures.c.kind.in_(INPUT_KINDS)
    )
    if orphaned_uploads := _find_orphaned(
        connection, ids, uploads
    ):  # another member may have uploaded the same file independently
        _delete_inputs(connection, pictures.c.job.in_(find_descendants(connection, ids)), orphaned_uploads)


def _select_pictures(connection: Connection, *conditions: ColumnElement[bool]) -> list[RowMapping]:
    query = select(pictures, jobs.c.parent).join(jobs, jobs.c.id == pictures.c.job)
    return list(connection.execute(query.where(*conditions)).mappings())


def _select_hashes(connection: Connection, *conditions: ColumnElement[bool]) -> set[str]:
    return {row["sha256"] for row in _select_pictures(connection, *conditions)}


def _find_orphaned(connection: Connection, ids: Sequence[str], hashes: Iterable[str]) -> set[str]:
    """Return the contents that no remaining job has as a result."""
    is_remaining_result = (jobs.c.deleted.is_(None), jobs.c.id.not_in(ids), pictures.c.kind.in_(RESULT_KINDS))
    hashes = set(hashes)
    return hashes - _select_hashes(connection, pictures.c.sha256.in_(hashes), *is_remaining_result)


def _delete_inputs(connection: Connection, condition: ColumnElement[bool], hashes: set[str]) -> None:
    connection.execute(
        pictures.delete().where(condition, pictures.c.sha256.in_(hashes), pictures.c.kind.in_(INPUT_KINDS))
    )


def _attach_canvases(connection: Connection, canvases: Sequence[RowMapping]) -> None:
    """Attach canvases that only derived jobs had to the deleted job that they show, so that their files are removed
    too.
    """
    for row in canvases:
        is_canvas_of_parent = (pictures.c.job == row["parent"], pictures.c.kind == CANVAS_KIND)
        last_image = connection.execute(select(func.max(pictures.c.image)).where(*is_canvas_of_parent)).scalar_one()
        values: dict[str, Any] = {column.name: row[column.name] for column in pictures.columns}
        values |= {"job": row["parent"], "kind": CANVAS_KIND, "image": 0 if last_image is None else last_image + 1}
        connection.execute(pictures.insert().values(values))


IdHasher = Callable[[str, str], str]
KEY_BYTES = 32
RELAXED_PREFIX = "relaxed "  # before the kind of an id
MAX_WINDOW = MONTH_SECONDS  # the longest window of any limit
_SELECT_KEY = select(charge_keys.c.key)


def archive_charges(connection: Connection, ids: Sequence[str], now: float) -> None:
    """Archive these jobs' charges that still count. Call it once, when their rows are deleted."""
    is_counted = or_(jobs.c.charged > 0, and_(jobs.c.tier == RELAXED_TIER, jobs.c.billed > 0))
    counted_query = select(jobs).where(jobs.c.id.in_(ids), is_counted, jobs.c.created > now - MAX_WINDOW)
    charge_rows = connection.execute(counted_query).all()
    if not charge_rows:
        return
    hash_id = load_hasher(connection) or create_hasher(connection)
    rows = list[dict[str, object]]()
    for row in charge_rows:
        is_relaxed = row.tier == RELAXED_TIER
        prefix = RELAXED_PREFIX if is_relaxed else ""
        ids_by_kind = {"member": row.member, "guild": row.guild, "channel": row.channel}
        hashes = {kind: hash_id(prefix + kind, text) for kind, text in ids_by_kind.items()}
        rows.append({**hashes, "at": row.created, "charged": row.billed if is_relaxed else row.charged})
    connection.execute(archived_charges.insert(), rows)


def load_hasher(connection: Connection) -> IdHasher | None:
    """Return the function (kind, id) → hash; None if no charge is archived."""
    key = connection.execute(_SELECT_KEY).scalar_one_or_none()
    return None if key is None else _make_hasher(bytes(key))


def create_hasher(connection: Connection) -> IdHasher:
    """Write a new key; return its function (kind, id) → hash."""
    key = secrets.token_bytes(KEY_BYTES)
    connection.execute(charge_keys.insert().values(id=1, key=key))
    return _make_hasher(key)


def _make_hasher(key: bytes) -> IdHasher:
    def hash_id(kind: str, text: str) -> str:
        return hmac.new(key, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()

    return hash_id


def delete_old_charges(connection: Connection, now: float) -> None:
    """Delete charges that no limit counts any more, and the key with the last of them."""
    connection.execute(archived_charges.delete().where(archived_charges.c.at <= now - MAX_WINDOW))
    if connection.execute(select(archived_charges.c.id).limit(1)).first() is None:
        connection.execute(charge_keys.delete())
