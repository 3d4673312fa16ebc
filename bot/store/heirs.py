"""Removes a deleted job's pictures from the inputs of jobs made from it. The results of those jobs stay.

Edits, zooms and pans have their source's pixels as input, branches its ladder, and every job made from an uploaded
picture has that picture. Retention by age removes no inputs of other jobs. Works inside its caller's transaction; the
files of removed rows are deleted like those of a deleted job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.engine import RowMapping

from bot.store.tables import jobs, pictures

MADE, BEGUN = ("image", "ladder"), ("input", "mask", "branch")
CANVAS = "canvas"  # the canvas of a derived job, kept as a leftover of the job that it shows
OF_A_PICTURE = ("edit", "zoom", "pan")
BRINGING = ("imagine", "blend", "zoom", "pan")  # their input is the member's: uploaded files, a canvas


def disinherit(connection: Connection, ids: Sequence[str]) -> None:
    """Remove from jobs that stay every input that came from these jobs: a result, or an uploaded picture."""
    made = _contents(connection, jobs.c.id.in_(ids), pictures.c.kind.in_(MADE))
    canvases = _rows(connection, jobs.c.parent.in_(ids), jobs.c.action.in_(OF_A_PICTURE), pictures.c.kind == "input")
    theirs = _dead(connection, ids, made | {row["sha256"] for row in canvases})
    _leave(connection, [row for row in canvases if row["sha256"] in theirs - made])
    _take(connection, pictures.c.job.not_in(ids), theirs)
    brought = _contents(connection, jobs.c.id.in_(ids), jobs.c.action.in_(BRINGING), pictures.c.kind.in_(BEGUN))
    if lent := _dead(connection, ids, brought):  # another member may have uploaded the same file independently
        _take(connection, pictures.c.job.in_(_heirs(connection, ids)), lent)


def _rows(connection: Connection, *where: ColumnElement[bool]) -> list[RowMapping]:
    asked = select(pictures, jobs.c.parent).join(jobs, jobs.c.id == pictures.c.job)
    return list(connection.execute(asked.where(*where)).mappings())


def _contents(connection: Connection, *where: ColumnElement[bool]) -> set[str]:
    return {row["sha256"] for row in _rows(connection, *where)}


def _dead(connection: Connection, ids: Sequence[str], names: Iterable[str]) -> set[str]:
    """Return the contents that no remaining job has as a result."""
    alive = (jobs.c.deleted.is_(None), jobs.c.id.not_in(ids), pictures.c.kind.in_(MADE))
    names = set(names)
    return names - _contents(connection, pictures.c.sha256.in_(names), *alive)


def _take(connection: Connection, whose: ColumnElement[bool], names: set[str]) -> None:
    connection.execute(pictures.delete().where(whose, pictures.c.sha256.in_(names), pictures.c.kind.in_(BEGUN)))


def _leave(connection: Connection, canvases: Sequence[RowMapping]) -> None:
    """Attach canvases that only derived jobs had to the deleted job that they show, so that their files go too."""
    for row in canvases:
        mine = (pictures.c.job == row["parent"], pictures.c.kind == CANVAS)
        last = connection.execute(select(func.max(pictures.c.image)).where(*mine)).scalar_one()
        values: dict[str, Any] = {one.name: row[one.name] for one in pictures.columns}
        values |= {"job": row["parent"], "kind": CANVAS, "image": 0 if last is None else last + 1}
        connection.execute(pictures.insert().values(values))


def _heirs(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Return all jobs made from these, directly or indirectly."""
    found, newest = set(ids), list(ids)
    while newest:
        children = connection.execute(select(jobs.c.id).where(jobs.c.parent.in_(newest))).scalars()
        newest = [job for job in children if job not in found]
        found |= set(newest)
    return sorted(found - set(ids))
