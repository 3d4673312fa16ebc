"""Read queries for a member's history: jobs by filter, favourites, and where each job was delivered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, and_, exists, func, or_, select

from bot.states import ENDS, OPEN
from bot.store.places import is_film
from bot.store.reads import records
from bot.store.records import Record
from bot.store.tables import favourites, jobs, places
from bot.views import Place, PlaceKind

Which = Literal["all", "favourites", "waiting", "unshown"]


def owned(connection: Connection, member: str, which: Which, limit: int, offset: int) -> tuple[list[Record], int]:
    """Return a page of a member's jobs, the newest first, and their total. Favourites include others' public jobs."""
    mine = _which(member, which)
    count = int(connection.execute(select(func.count()).select_from(jobs).where(mine)).scalar_one())
    asked = select(jobs).where(mine).order_by(jobs.c.id.desc()).limit(limit).offset(offset)
    return records(connection, asked), count


def _which(member: str, which: Which) -> ColumnElement[bool]:
    mine = and_(jobs.c.member == member, jobs.c.deleted.is_(None))
    if which == "waiting":
        return and_(mine, jobs.c.state.in_(OPEN))
    if which == "favourites":
        liked = exists().where(favourites.c.job == jobs.c.id, favourites.c.member == member)
        return and_(liked, or_(mine, jobs.c.private.is_(False)))
    if which == "unshown":
        said = exists().where(places.c.job == jobs.c.id, places.c.reason != "")
        done = (places.c.reason == "", places.c.delivered.is_not(None), ~is_film())
        shown = exists().where(places.c.job == jobs.c.id, *done)
        return and_(mine, jobs.c.state.in_(ENDS), said, ~shown)
    return mine


def near(connection: Connection, member: str, guild: str, channel: str, limit: int) -> list[Record]:
    """Return the newest of a member's jobs and a channel's public jobs together. Autocomplete calls it at each
    keystroke, so it makes two short scans, each along its own index.
    """
    public = and_(jobs.c.guild == guild, jobs.c.channel == channel, jobs.c.private.is_(False))
    newest: dict[str, Record] = {}
    for which in (jobs.c.member == member, public):
        asked = select(jobs).where(which, jobs.c.deleted.is_(None)).order_by(jobs.c.id.desc()).limit(limit)
        newest |= {one.id: one for one in records(connection, asked)}
    return [newest[job] for job in sorted(newest, reverse=True)[:limit]]


def open_of(connection: Connection, member: str, limit: int) -> list[Record]:
    """Return a member's open jobs, the newest first."""
    asked = select(jobs).where(jobs.c.member == member, jobs.c.state.in_(OPEN))
    return records(connection, asked.order_by(jobs.c.id.desc()).limit(limit))


def whereabouts(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[Place | None, str]]:
    """Return for each job where it was delivered, or should have been, and why no delivery succeeded."""
    found: dict[str, list[Any]] = {}
    for row in connection.execute(select(places).where(places.c.job.in_(ids), ~is_film()).order_by(places.c.role)):
        found.setdefault(row.job, []).append(row)
    return {job: _whereabouts(rows) for job, rows in found.items()}


def _whereabouts(rows: Sequence[Any]) -> tuple[Place | None, str]:
    shown = next((row for row in rows if not row.reason and row.delivered is not None), None)
    one = shown or rows[0]
    reason = "" if shown else " ".join(row.reason for row in rows if row.reason)
    return Place(cast(PlaceKind, one.kind), dict(one.where)), reason


def liked(connection: Connection, member: str, ids: Sequence[str]) -> dict[str, list[int]]:
    """Return a member's favourite images among these jobs."""
    asked = select(favourites.c.job, favourites.c.image).where(favourites.c.member == member, favourites.c.job.in_(ids))
    found: dict[str, list[int]] = {}
    for row in connection.execute(asked.order_by(favourites.c.image)):
        found.setdefault(row.job, []).append(row.image)
    return found
