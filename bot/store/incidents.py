"""Incidents in SQL: write, read, close. Each function works inside its caller's transaction.

Nobody can flood the table: kinds that a member can repeat are limited per hour, and each guild has a maximum. Beyond it
the oldest closed incidents go first, and those that wait for a moderator last.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, RowMapping, case, func, select, update

from bot.incidents import REPEATED, SAID, WAITING, Incident, Kind
from bot.refused import Refused
from bot.sentences import plain, shortened
from bot.store.tables import incidents as kept

MOST = 2000  # per guild
EACH, HOUR = 5, 3600.0  # most per hour of one member and one repeatable kind
REPORTS, DAY = 10, 86_400.0  # most per day of one member
NAME_LENGTH = 128


def note(
    connection: Connection, guild: str, kind: Kind, actor: str, name: str, said: str, now: float, job: str = ""
) -> int | None:
    """Write an incident and return its number; None if the member reached the hourly limit of its kind."""
    mine = (kept.c.guild == guild, kept.c.kind == kind, kept.c.actor == actor)
    if kind in REPEATED and _count(connection, *mine, kept.c.at > now - HOUR) >= EACH:
        return None
    values = {
        "guild": guild, "at": now, "kind": kind, "actor": actor, "actor_name": plain(name)[:NAME_LENGTH], "job": job,
        "said": shortened(said, SAID), "closed": None if kind in WAITING else now,
    }  # fmt: skip
    number = connection.execute(kept.insert().values(**values).returning(kept.c.id)).scalar_one()
    _forget(connection, guild)
    return int(number)


def _forget(connection: Connection, guild: str) -> None:
    excess = _count(connection, kept.c.guild == guild) - MOST
    if excess > 0:
        waits = case((kept.c.closed.is_(None), 1), else_=0)
        oldest = select(kept.c.id).where(kept.c.guild == guild).order_by(waits, kept.c.id).limit(excess)
        connection.execute(kept.delete().where(kept.c.id.in_(oldest)))


def report(
    connection: Connection, guild: str, actor: str, name: str, said: str, now: float, job: str
) -> int:  # fmt: skip
    """Write a member's report of a job. Raises `Refused` (429) for a second one of the job, or too many in a day."""
    mine = (kept.c.kind == "report", kept.c.actor == actor)
    if _count(connection, kept.c.guild == guild, *mine, kept.c.job == job):
        raise Refused("You have reported this already: the moderators have it.", 429)
    recent = [row.at for row in connection.execute(select(kept.c.at).where(*mine, kept.c.at > now - DAY))]
    if len(recent) >= REPORTS:
        raise Refused(
            f"At most {REPORTS} reports in 24 hours, and you have made {len(recent)}. If it is urgent, write to a "
            "moderator.", 429, frees=min(recent) + DAY,
        )  # fmt: skip
    number = note(connection, guild, "report", actor, name, said, now, job)
    assert number is not None, "reports are bounded above"
    return number


def newest(connection: Connection, guild: str | None, limit: int, *, waiting: bool = False) -> list[Incident]:
    """Return the newest incidents first, of one guild or of all. `waiting`: only those that wait for a moderator."""
    asked = select(kept).order_by(kept.c.id.desc()).limit(limit)
    if guild is not None:
        asked = asked.where(kept.c.guild == guild)
    if waiting:
        asked = asked.where(kept.c.closed.is_(None))
    return [_incident(row) for row in connection.execute(asked).mappings()]


def close(connection: Connection, guild: str, number: int, actor: tuple[str, str], now: float) -> Incident:
    """Close an incident and record who closed it; a closed one stays unchanged. Raises `Refused` (404)."""
    which = (kept.c.id == number, kept.c.guild == guild)
    row = connection.execute(select(kept).where(*which)).mappings().first()
    if row is None:
        raise Refused(f"There is no incident {number} here.", 404)
    if row["closed"] is None:
        row = connection.execute(update(kept).where(*which).values(closed=now).returning(kept)).mappings().one()
        note(connection, guild, "closed", *actor, f"number {number}", now, row["job"])
    return _incident(row)


def decided(connection: Connection, job: str, about: str, now: float) -> None:
    """Close the "held" incident whose text begins with `about`: a moderator has decided."""
    same = (kept.c.job == job, kept.c.kind == "held", kept.c.said.startswith(about), kept.c.closed.is_(None))
    connection.execute(update(kept).where(*same).values(closed=now))


def settle(connection: Connection, jobs: list[str], now: float) -> bool:
    """Close the open incidents of these jobs, which are deleted. Return True if there was one."""
    waits = update(kept).where(kept.c.job.in_(jobs), kept.c.closed.is_(None))
    return connection.execute(waits.values(closed=now)).rowcount > 0


def _count(connection: Connection, *which: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count()).select_from(kept).where(*which)).scalar_one())


def _incident(row: RowMapping) -> Incident:
    values = {name: value for name, value in row.items() if name != "id"}
    return Incident(number=row["id"], **values)  # pyright: ignore[reportArgumentType]
