"""What is written beside the transitions: pictures, places, model profiles. One transaction each."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select, update

from bot.states import OPEN
from bot.store import reads
from bot.store.records import Stored
from bot.store.reviews import note_held
from bot.store.tables import jobs, models, pictures, places
from engine.job import Warm, encode


def keep(connection: Connection, one: Stored, epoch: int, now: float) -> bool:
    """A picture or ladder, unless the job is unknown or over, or a newer epoch has it."""
    owner = select(jobs.c.id).where(jobs.c.id == one.job, jobs.c.state.in_(OPEN), jobs.c.epoch <= epoch)
    if connection.execute(owner.with_for_update()).first() is None:
        return False
    same = (pictures.c.job == one.job, pictures.c.image == one.image, pictures.c.kind == one.kind)
    before = connection.execute(select(pictures.c.verdict).where(*same)).scalar_one_or_none()
    connection.execute(pictures.delete().where(*same))
    connection.execute(pictures.insert().values(**vars(one)))
    note_held(connection, one, before, now)
    return True


def moved(connection: Connection, job: str, where: Mapping[str, str]) -> None:
    """Merge into a place."""
    found = reads.place(connection, job)
    if found is not None:
        merged = {**found.where, **where}
        answer = update(places).where(places.c.job == job, places.c.role == "answer")
        connection.execute(answer.values(where=merged, message=merged.get("message", "")))


def delivered(connection: Connection, job: str, now: float) -> None:
    """The last word about a job was shown."""
    answer = update(places).where(places.c.job == job, places.c.role == "answer")
    connection.execute(answer.values(delivered=now))


def remember(connection: Connection, warm: Warm, pool: str, now: float) -> None:
    """A model's profile, in place of an older one."""
    connection.execute(models.delete().where(models.c.name == warm.name))
    connection.execute(models.insert().values(name=warm.name, warm=encode(warm), pool=pool, seen=now))
