"""Removes a deleted job's pictures from the inputs of jobs made from it. The results of those jobs stay.

Edits, zooms and pans have their source's pixels as input, and branches its ladder. A job made from an uploaded picture
has that picture, and one that follows a control or reference picture has that one. Retention by age removes no inputs
of other jobs. Works inside its caller's transaction; the files of removed rows are deleted like those of a deleted job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.engine import RowMapping

from bot.store.schema.tables import jobs, pictures

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
        _delete_inputs(connection, pictures.c.job.in_(_find_descendants(connection, ids)), orphaned_uploads)


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


def _find_descendants(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Return all jobs made from these, directly or indirectly."""
    job_ids = set(ids)
    frontier = list(ids)
    while frontier:
        children = connection.execute(select(jobs.c.id).where(jobs.c.parent.in_(frontier))).scalars()
        frontier = [job for job in children if job not in job_ids]
        job_ids |= set(frontier)
    return sorted(job_ids - set(ids))
