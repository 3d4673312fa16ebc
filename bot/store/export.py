"""Reads all data that a member's own actions left, page by page, for an export. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from bot.store import options
from bot.store.members import preferences
from bot.store.reads import records, stored
from bot.store.records import Record, Stored
from bot.store.tables import favourites, incidents, jobs, places

PAGE = 200  # jobs per page
KNOWN = ("guild", "channel", "message")  # exported fields of a destination; never tokens


@dataclass(frozen=True)
class Chosen:
    """A member's data that belongs to no job: preferences, flag aliases by name, favourites as (job, image, time), and
    reports as (job, time, text).
    """

    preferences: dict[str, object]
    options: dict[str, str]
    favourites: list[tuple[str, int, float]]
    reports: list[tuple[str, float, str]]


def chosen(connection: Connection, member: str) -> Chosen:
    """Read a member's choices. Favourites may be other members' pictures, so only ids are exported."""
    liked = select(favourites.c.job, favourites.c.image, favourites.c.at).where(favourites.c.member == member)
    said = select(incidents.c.job, incidents.c.at, incidents.c.said)
    mine = said.where(incidents.c.actor == member, incidents.c.kind == "report").order_by(incidents.c.id)
    return Chosen(
        preferences(connection, member),
        options.of(connection, member),
        [(row.job, row.image, row.at) for row in connection.execute(liked.order_by(favourites.c.at))],
        [(row.job, row.at, row.said) for row in connection.execute(mine)],
    )


def amount(connection: Connection, member: str) -> int:
    """Count the member's jobs that were not deleted."""
    mine = (jobs.c.member == member, jobs.c.deleted.is_(None))
    return int(connection.execute(select(func.count()).select_from(jobs).where(*mine)).scalar_one())


def page(connection: Connection, member: str, after: str) -> tuple[list[Record], list[Stored], dict[str, list[Any]]]:
    """Return the member's next jobs after id `after` in order of arrival, their pictures, and destinations by job."""
    mine = select(jobs).where(jobs.c.member == member, jobs.c.id > after, jobs.c.deleted.is_(None))
    found = records(connection, mine.order_by(jobs.c.id).limit(PAGE))
    ids = [one.id for one in found]
    return found, stored(connection, ids), _shown(connection, ids)


def _shown(connection: Connection, ids: Sequence[str]) -> dict[str, list[Any]]:
    shown: dict[str, list[Any]] = {}
    asked = select(places).where(places.c.job.in_(ids)).order_by(places.c.job, places.c.role)
    for row in connection.execute(asked):
        where = {name: row.where[name] for name in KNOWN if row.where.get(name)}
        said = {"as": row.role, "kind": row.kind, **where, "shown": row.delivered, "reason": row.reason}
        shown.setdefault(row.job, []).append(said)
    return shown
