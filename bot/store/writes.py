"""What is written beside the transitions: pictures, model profiles. One transaction each."""

from __future__ import annotations

from sqlalchemy import Connection, select

from bot.states import OPEN
from bot.store.records import Stored
from bot.store.reviews import note_held
from bot.store.tables import jobs, models, pictures
from engine.job import Warm, encode


def keep(connection: Connection, one: Stored, epoch: int, now: float) -> bool:
    """A picture or ladder, unless the job is unknown or over, or a newer epoch has it."""
    owner = select(jobs.c.check).where(jobs.c.id == one.job, jobs.c.state.in_(OPEN), jobs.c.epoch <= epoch)
    row = connection.execute(owner.where(jobs.c.deleted.is_(None)).with_for_update()).first()
    if row is None:
        return False
    same = (pictures.c.job == one.job, pictures.c.image == one.image, pictures.c.kind == one.kind)
    gone = connection.execute(pictures.delete().where(*same).returning(pictures.c.verdict))
    before = gone.scalar_one_or_none()
    connection.execute(pictures.insert().values(**vars(one)))
    if row.check:
        note_held(connection, one, before, now)
    return True


def remember(connection: Connection, warm: Warm, pool: str, now: float) -> None:
    """A model's profile, in place of an older one."""
    connection.execute(models.delete().where(models.c.name == warm.name))
    connection.execute(models.insert().values(name=warm.name, warm=encode(warm), pool=pool, seen=now))
