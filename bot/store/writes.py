"""Writes other than transitions: pictures, model profiles, jobs that a worker hands back. One transaction each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, select, update

from bot.states import OPEN
from bot.store.records import Stored
from bot.store.reviews import note_held
from bot.store.tables import jobs, models, pictures
from engine.job import Enlarge, Method, Recipe, Task, Warm, decode, encode

# Built once: building a statement takes longer than SQLite takes to run it.
_OPEN = select(jobs).where(jobs.c.id == bindparam("job"), jobs.c.epoch <= bindparam("epoch"), jobs.c.deleted.is_(None))
_OPEN = _OPEN.where(jobs.c.state.in_(OPEN)).with_for_update()
_KNOWN = select(pictures.c.image, pictures.c.kind, pictures.c.verdict).where(pictures.c.job == bindparam("job"))
_AGAIN = pictures.delete().where(pictures.c.job == bindparam("job"), pictures.c.image == bindparam("at"))
_AGAIN = _AGAIN.where(pictures.c.kind == bindparam("as"))
_KEPT = pictures.insert()


def keep(
    connection: Connection, found: Sequence[Stored], epoch: int, now: float, method: Method | None = None
) -> RowMapping | None:
    """Record pictures and ladders of one job, and return its row. None: it is unknown, over, or a newer epoch has it.

    An upscale's task gets the method really used: a worker without a super-resolver uses Lanczos, and the job's view
    must say so.
    """
    job = found[0].job
    row = open_row(connection, job, epoch)
    if row is None:
        return None
    places = {(one.image, one.kind) for one in found}
    before = {(each.image, each.kind): each.verdict for each in connection.execute(_KNOWN, {"job": job})}
    for image, kind in places & before.keys():
        connection.execute(_AGAIN, {"job": job, "at": image, "as": kind})
    connection.execute(_KEPT, [vars(one) for one in found])
    if method is not None:
        _enlarged(connection, job, row["task"], method)
    if row["check"]:
        for one in found:
            note_held(connection, one, before.get((one.image, one.kind)), now)
    return row


def open_row(connection: Connection, job: str, epoch: int) -> RowMapping | None:
    """Return the row of a job that still accepts pictures, locked until this transaction ends."""
    return connection.execute(_OPEN, {"job": job, "epoch": epoch}).mappings().first()


def _enlarged(connection: Connection, job: str, task: bytes, method: Method) -> None:
    asked = decode(task, cast("type[Task]", Recipe | Enlarge))
    if isinstance(asked, Enlarge) and asked.method != method:
        done = encode(msgspec.structs.replace(asked, method=method))
        connection.execute(update(jobs).where(jobs.c.id == job).values(task=done))


def remember(connection: Connection, warm: Warm, pool: str, now: float) -> None:
    """Store a model's profile in place of an older one."""
    connection.execute(models.delete().where(models.c.name == warm.name))
    connection.execute(models.insert().values(name=warm.name, warm=encode(warm), pool=pool, seen=now))


def let_go(connection: Connection, job: str, epoch: int) -> bool:
    """Record that the worker handed the job back: the next start will not count as an attempt without progress.

    False: it did so already, or another worker has the job.
    """
    held = (jobs.c.id == job, jobs.c.epoch == epoch, jobs.c.state == "running", jobs.c.worker != "")
    return connection.execute(update(jobs).where(*held).values(worker="", barren=jobs.c.barren - 1)).rowcount == 1
