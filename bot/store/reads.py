"""Read queries: jobs, pictures, usage, accounts. Each works inside its caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select

from bot.fair import Account, Waiting
from bot.states import ACTIVE, OPEN
from bot.store.records import Entry, Record, Stored, record
from bot.store.tables import accounts, jobs, models, moves, pictures
from engine.job import Malformed, Warm, decode

log = logging.getLogger(__name__)

_TURN = select(func.count()).select_from(jobs).where(jobs.c.account == bindparam("account"), jobs.c.state == "queued")
_TURN = _TURN.where(jobs.c.id < bindparam("job"))  # run at each admission
_IDS = bindparam("ids", expanding=True)
_SOME = select(jobs).where(jobs.c.id.in_(_IDS))  # this and the next run at each view of a job
_STORED = select(pictures).where(pictures.c.job.in_(_IDS))
_STORED = _STORED.order_by(pictures.c.job, pictures.c.image, pictures.c.kind)


def records(
    connection: Connection, asked: Select[*tuple[Any, ...]], told: Mapping[str, object] | None = None
) -> list[Record]:
    """Return rows of `jobs` as records. A corrupt row is skipped and logged: it must not block the others."""
    found: list[Record] = []
    for row in connection.execute(asked, told or {}).mappings():
        try:
            found.append(record(row))
        except (Malformed, TypeError) as error:
            log.error("job %s: its row cannot be read: %s", row["id"], error)
    return found


def of_key(connection: Connection, key: str) -> list[Record]:
    """Return the jobs that an idempotency key made, in their order."""
    return records(connection, select(jobs).where(jobs.c.key == key).order_by(jobs.c.ordinal))


def newest(connection: Connection, guild: str | None, limit: int) -> list[Record]:
    """Return undeleted jobs in any state, the newest first."""
    asked = select(jobs).where(jobs.c.deleted.is_(None)).order_by(jobs.c.id.desc()).limit(limit)
    return records(connection, asked if guild is None else asked.where(jobs.c.guild == guild))


def active(connection: Connection) -> list[Record]:
    """Return all sent and running jobs, the oldest first."""
    return records(connection, select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id))


def some(connection: Connection, ids: Sequence[str]) -> dict[str, Record]:
    """Return those of these jobs that exist, by id."""
    return {one.id: one for one in records(connection, _SOME, {"ids": list(ids)})}


def queued(connection: Connection, guild: str | None, limit: int) -> list[Record]:
    """Return waiting jobs, the oldest first."""
    asked = select(jobs).where(jobs.c.state == "queued").order_by(jobs.c.id).limit(limit)
    return records(connection, asked if guild is None else asked.where(jobs.c.guild == guild))


def queued_of(connection: Connection, member: str) -> list[Record]:
    """Return at most 100 waiting jobs of a member, the oldest first."""
    mine = select(jobs).where(jobs.c.member == member, jobs.c.state == "queued")
    return records(connection, mine.order_by(jobs.c.id).limit(100))


def open_of(connection: Connection, guild: str | None) -> list[str]:
    """Return every open job of a guild (None: of all) that is not being cancelled. Waiting jobs come first, so that
    they are cancelled before they are sent.
    """
    asked = select(jobs.c.id).where(jobs.c.state.in_(OPEN), jobs.c.cancelling.is_(False))
    asked = asked if guild is None else asked.where(jobs.c.guild == guild)
    return list(connection.execute(asked.order_by(jobs.c.state != "queued", jobs.c.id)).scalars())


def overdue(connection: Connection, now: float) -> list[Record]:
    """Return at most 100 open jobs whose deadline has passed."""
    late = select(jobs).where(jobs.c.state.in_(OPEN), jobs.c.deadline <= now)
    return records(connection, late.order_by(jobs.c.id).limit(100))


def waiting(connection: Connection, most: int) -> tuple[list[tuple[Waiting, str]], dict[str, Account]] | None:
    """Return every waiting job with its model, and the accounts above them; None if more than `most` wait."""
    asked = select(jobs.c.id, jobs.c.account, jobs.c.cost, jobs.c.billed, jobs.c.model).where(jobs.c.state == "queued")
    rows = connection.execute(asked.limit(most + 1)).all()
    if len(rows) > most:
        return None
    found = connection.execute(select(accounts).where(accounts.c.queued > 0))
    tree = {row["path"]: Account(**dict(row)) for row in found.mappings()}
    return [(Waiting(row.id, row.account, max(0.0, row.cost - row.billed)), row.model) for row in rows], tree


def turn(connection: Connection, one: Record) -> int:
    """Count the member's jobs that wait before this one."""
    return int(connection.execute(_TURN, {"account": one.account, "job": one.id}).scalar_one())


def crowds(connection: Connection) -> dict[str, list[tuple[int, float]]]:
    """Return for each pool one (number of jobs, mean cost) pair for each waiting member."""
    each = select(jobs.c.pool, func.count().label("n"), func.avg(jobs.c.cost).label("cost"))
    found: dict[str, list[tuple[int, float]]] = {}
    for row in connection.execute(each.where(jobs.c.state == "queued").group_by(jobs.c.pool, jobs.c.account)):
        found.setdefault(row.pool, []).append((int(row.n), float(row.cost)))
    return found


def stored(connection: Connection, ids: Sequence[str]) -> list[Stored]:
    """Return the pictures and ladders of these jobs, by job and image."""
    return [Stored(**row) for row in connection.execute(_STORED, {"ids": list(ids)}).mappings()]


def history(connection: Connection, ids: Sequence[str]) -> list[Entry]:
    """Return the audit lines of these jobs, in order."""
    asked = select(moves).where(moves.c.job.in_(ids)).order_by(moves.c.id)
    rows = [dict(row) for row in connection.execute(asked).mappings()]
    return [Entry(**{name: value for name, value in row.items() if name != "id"}) for row in rows]


def known_models(connection: Connection) -> list[tuple[Warm, str]]:
    """Return every model that a worker ever offered, with its pool, the last seen first."""
    found: list[tuple[Warm, str]] = []
    for row in connection.execute(select(models).order_by(models.c.seen.desc(), models.c.name)):
        try:
            found.append((decode(row.warm, Warm), row.pool))
        except Malformed as error:
            log.error("model %s: its profile cannot be read: %s", row.name, error)
    return found
