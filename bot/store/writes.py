"""What is written beside the transitions: pictures, profiles, a job that its worker let go. One transaction each."""

from __future__ import annotations

from typing import cast

import msgspec
from sqlalchemy import Connection, select, update

from bot.states import OPEN
from bot.store.records import Stored
from bot.store.reviews import note_held
from bot.store.tables import jobs, models, pictures
from engine.job import Enlarge, Method, Recipe, Task, Warm, decode, encode


def keep(connection: Connection, one: Stored, epoch: int, now: float, method: Method | None = None) -> bool:
    """A picture or ladder, unless the job is unknown or over, or a newer epoch has it.

    An enlargement's task becomes what was done of it: a worker without a super-resolver takes Lanczos, and the card
    must not say otherwise.
    """
    owner = select(jobs.c.check, jobs.c.task).where(jobs.c.id == one.job, jobs.c.state.in_(OPEN), jobs.c.epoch <= epoch)
    row = connection.execute(owner.where(jobs.c.deleted.is_(None)).with_for_update()).first()
    if row is None:
        return False
    same = (pictures.c.job == one.job, pictures.c.image == one.image, pictures.c.kind == one.kind)
    gone = connection.execute(pictures.delete().where(*same).returning(pictures.c.verdict))
    before = gone.scalar_one_or_none()
    connection.execute(pictures.insert().values(**vars(one)))
    if method is not None:
        _enlarged(connection, one.job, row.task, method)
    if row.check:
        note_held(connection, one, before, now)
    return True


def _enlarged(connection: Connection, job: str, task: bytes, method: Method) -> None:
    asked = decode(task, cast("type[Task]", Recipe | Enlarge))
    if isinstance(asked, Enlarge) and asked.method != method:
        done = encode(msgspec.structs.replace(asked, method=method))
        connection.execute(update(jobs).where(jobs.c.id == job).values(task=done))


def remember(connection: Connection, warm: Warm, pool: str, now: float) -> None:
    """A model's profile, in place of an older one."""
    connection.execute(models.delete().where(models.c.name == warm.name))
    connection.execute(models.insert().values(name=warm.name, warm=encode(warm), pool=pool, seen=now))


def let_go(connection: Connection, job: str, epoch: int) -> bool:
    """Its worker ended in order: the next start counts as no attempt without progress. False: it has let go already,
    or another has it.
    """
    held = (jobs.c.id == job, jobs.c.epoch == epoch, jobs.c.state == "running", jobs.c.worker != "")
    return connection.execute(update(jobs).where(*held).values(worker="", barren=jobs.c.barren - 1)).rowcount == 1
