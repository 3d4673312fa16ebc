"""Erases members who asked to be forgotten: one row for each pending request, and the deletion of their data.

Jobs are deleted as for retention (`keeping`), and so are their messages: a destination's row goes once its message is
deleted in Discord. Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, update

from bot.states import State
from bot.store import heirs
from bot.store.choices import options, preferences
from bot.store.deleting import withdraw
from bot.store.keeping import BATCH, note
from bot.store.tables import accounts, favourites, incidents, jobs, places
from bot.store.traces import departures, gone

TOLD = ("word", "blocked", "report", "held")  # incidents of a member's acts; the other kinds are staff decisions
FORGOTTEN = "deleted member"


@dataclass(frozen=True)
class Departure:
    """A request to be forgotten: everywhere, or in one `guild`. Data newer than `asked` stays."""

    member: str
    guild: str
    asked: float


def depart(connection: Connection, one: Departure) -> int:
    """Record the request and return how many jobs it covers. A pending one is extended to newer jobs."""
    same = (departures.c.member == one.member, departures.c.guild == one.guild)
    connection.execute(departures.delete().where(*same))
    connection.execute(departures.insert().values(**vars(one)))
    return int(connection.execute(select(func.count()).select_from(jobs).where(_theirs(one))).scalar_one())


def under_way(connection: Connection) -> list[Departure]:
    """Return every pending request, the oldest first."""
    found = connection.execute(select(departures).order_by(departures.c.asked)).mappings()
    return [Departure(**row) for row in found]


def take(connection: Connection, one: Departure, now: float) -> list[str]:
    """Mark a batch of the member's jobs as deleted, and others' upscales of them, whose rows stay. Empty: no more."""
    asked = select(jobs.c.id).where(_theirs(one), ~_is_going()).order_by(jobs.c.id).limit(BATCH)
    theirs = list(connection.execute(asked).scalars())
    found, newest = set(theirs), theirs
    while newest:
        children = select(jobs.c.id).where(jobs.c.parent.in_(newest), jobs.c.action == "upscale")
        newest = [job for job in connection.execute(children).scalars() if job not in found]
        found |= set(newest)
    withdraw(connection, sorted(found), now)
    heirs.disinherit(connection, sorted(found))
    connection.execute(gone.delete().where(gone.c.job.in_(theirs)))  # a job that retention removed keeps its messages
    note(connection, theirs, "forgotten", now)
    enlarged = select(jobs.c.id).where(jobs.c.id.in_(found), ~_theirs(one))
    note(connection, list(connection.execute(enlarged).scalars()), "enlarged", now)
    return sorted(found)


def forget(connection: Connection, one: Departure) -> None:
    """Delete the member's data that belongs to no job: their choices, and their name in incidents."""
    liked = [favourites.c.member == one.member, favourites.c.at <= one.asked]
    if one.guild:
        liked.append(favourites.c.job.in_(select(jobs.c.id).where(jobs.c.guild == one.guild)))
    else:
        connection.execute(preferences.delete().where(preferences.c.member == one.member))
        connection.execute(options.delete().where(options.c.member == one.member))
    connection.execute(favourites.delete().where(*liked))
    noted = [incidents.c.actor == one.member, incidents.c.at <= one.asked]
    noted += [incidents.c.guild == one.guild] if one.guild else []
    told = and_(*noted, incidents.c.kind.in_(TOLD))
    connection.execute(incidents.delete().where(told, incidents.c.closed.is_not(None)))
    connection.execute(update(incidents).where(told).values(actor="", actor_name=FORGOTTEN))


def state(connection: Connection, job: str) -> State | None:
    """Return a job's state even if the rest of its row is corrupt; None where it has no row."""
    return cast("State | None", connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one_or_none())


def messages_gone(connection: Connection, job: str, role: str) -> None:
    """Drop a destination whose message was deleted, or cannot be."""
    connection.execute(places.delete().where(places.c.job == job, places.c.role == role))


def settled(connection: Connection, ids: Sequence[str]) -> None:
    """Close the deletion of others' upscales once pictures and messages are gone. Their rows stay."""
    connection.execute(gone.delete().where(gone.c.job.in_(ids), gone.c.why == "enlarged"))


def finish(connection: Connection, one: Departure) -> bool:
    """Close the request if no job of the member is left, and delete their idle accounts of the fair order."""
    if connection.execute(select(jobs.c.id).where(_theirs(one)).limit(1)).first() is not None:
        return False
    escaped = one.member.replace("%", "%25").replace("/", "%2F")
    here = [accounts.c.path.endswith(f"/{escaped}", autoescape=True), accounts.c.queued == 0, accounts.c.active == 0]
    if one.guild:
        guild = one.guild.replace("%", "%25").replace("/", "%2F")
        here.append(accounts.c.path.endswith(f"/{guild}/{escaped}", autoescape=True))
    newer = exists().where(jobs.c.account == accounts.c.path)
    connection.execute(accounts.delete().where(*here, ~newer))
    same = (departures.c.member == one.member, departures.c.guild == one.guild, departures.c.asked == one.asked)
    return connection.execute(departures.delete().where(*same)).rowcount > 0


def _theirs(one: Departure) -> ColumnElement[bool]:
    mine = and_(jobs.c.member == one.member, jobs.c.created <= one.asked)
    return and_(mine, jobs.c.guild == one.guild) if one.guild else mine


def _is_going() -> ColumnElement[bool]:
    return exists().where(gone.c.job == jobs.c.id, gone.c.why == "forgotten")
