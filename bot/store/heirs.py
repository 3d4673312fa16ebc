"""What others' jobs keep of one that is deleted or forgotten: what they began with goes with it, what they made stays.

Edits, zooms and pans hold their source's pixels as what they began with, branches its ladder, and whatever came of a
job with a picture that was brought that picture. Jobs that go by age take nothing of others' along. Works inside its
caller's transaction; what is taken out of the table is left to be emptied as what is left of a deleted job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.engine import RowMapping

from bot.store.tables import jobs, pictures

MADE, BEGUN = ("image", "ladder"), ("input", "mask", "branch")
CANVAS = "canvas"  # of an heir's, left with whom it shows
OF_A_PICTURE = ("edit", "zoom", "pan")
BRINGING = ("imagine", "blend", "zoom", "pan")  # what they begin with is theirs: files that were sent, a canvas


def disinherit(connection: Connection, ids: Sequence[str]) -> None:
    """What jobs that stay began with, as far as it is of these: of what they made, or of what was brought to them."""
    made = _contents(connection, jobs.c.id.in_(ids), pictures.c.kind.in_(MADE))
    canvases = _rows(connection, jobs.c.parent.in_(ids), jobs.c.action.in_(OF_A_PICTURE), pictures.c.kind == "input")
    theirs = _dead(connection, ids, made | {row["sha256"] for row in canvases})
    _leave(connection, [row for row in canvases if row["sha256"] in theirs - made])
    _take(connection, pictures.c.job.not_in(ids), theirs)
    brought = _contents(connection, jobs.c.id.in_(ids), jobs.c.action.in_(BRINGING), pictures.c.kind.in_(BEGUN))
    if lent := _dead(connection, ids, brought):  # somebody else may have brought the same by themselves
        _take(connection, pictures.c.job.in_(_heirs(connection, ids)), lent)


def _rows(connection: Connection, *where: ColumnElement[bool]) -> list[RowMapping]:
    asked = select(pictures, jobs.c.parent).join(jobs, jobs.c.id == pictures.c.job)
    return list(connection.execute(asked.where(*where)).mappings())


def _contents(connection: Connection, *where: ColumnElement[bool]) -> set[str]:
    return {row["sha256"] for row in _rows(connection, *where)}


def _dead(connection: Connection, ids: Sequence[str], names: Iterable[str]) -> set[str]:
    """Those of these contents that no job which stays has made as well."""
    alive = (jobs.c.deleted.is_(None), jobs.c.id.not_in(ids), pictures.c.kind.in_(MADE))
    names = set(names)
    return names - _contents(connection, pictures.c.sha256.in_(names), *alive)


def _take(connection: Connection, whose: ColumnElement[bool], names: set[str]) -> None:
    connection.execute(pictures.delete().where(whose, pictures.c.sha256.in_(names), pictures.c.kind.in_(BEGUN)))


def _leave(connection: Connection, canvases: Sequence[RowMapping]) -> None:
    """Contents that only heirs had: noted with the job that they show, whose files are taken away."""
    for row in canvases:
        mine = (pictures.c.job == row["parent"], pictures.c.kind == CANVAS)
        last = connection.execute(select(func.max(pictures.c.image)).where(*mine)).scalar_one()
        values: dict[str, Any] = {one.name: row[one.name] for one in pictures.columns}
        values |= {"job": row["parent"], "kind": CANVAS, "image": 0 if last is None else last + 1}
        connection.execute(pictures.insert().values(values))


def _heirs(connection: Connection, ids: Sequence[str]) -> list[str]:
    """All that came of these jobs, however far."""
    found, newest = set(ids), list(ids)
    while newest:
        children = connection.execute(select(jobs.c.id).where(jobs.c.parent.in_(newest))).scalars()
        newest = [job for job in children if job not in found]
        found |= set(newest)
    return sorted(found - set(ids))
