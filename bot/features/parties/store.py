"""Parties in SQL, and their tables. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    Select,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from bot.domain.dto import Member
from bot.features.parties.rules import PartyTalk, Phrase
from bot.store.schema.tables import jobs, metadata

MAX_MEMBERS = 200  # of one party


@dataclass(frozen=True)
class PartyRecord:
    """A row of the table `parties`, which explains its columns."""

    job: str
    place: str
    minutes: int
    invited: tuple[str, ...]
    is_open: bool
    ends: float | None
    changed: float


def open_party(connection: Connection, job: str, place: str, minutes: int, invited: Collection[str]) -> bool:
    """Open a party around a job. False, and nothing stored, if its place has one already."""
    if find_open_party(connection, place) is not None:
        return False
    values = {"job": job, "place": place, "minutes": minutes, "invited": sorted(invited), "is_open": True}
    connection.execute(insert(parties).values(**values, ends=None, changed=0.0, last_phrase=0))
    return True


def find_open_party(connection: Connection, place: str) -> PartyRecord | None:
    return next(iter(_list_parties(connection, parties.c.place == place, parties.c.is_open)), None)


def find_party(connection: Connection, job: str) -> PartyRecord | None:
    """Return the party around a job, open or not."""
    return next(iter(_list_parties(connection, parties.c.job == job)), None)


def list_open_parties(connection: Connection) -> list[PartyRecord]:
    return _list_parties(connection, parties.c.is_open)


def _list_parties(connection: Connection, *conditions: ColumnElement[bool]) -> list[PartyRecord]:
    rows = connection.execute(select(parties).where(*conditions).order_by(parties.c.job)).mappings()
    names = ("job", "place", "minutes", "is_open", "ends", "changed")
    return [PartyRecord(invited=tuple(row["invited"]), **{name: row[name] for name in names}) for row in rows]


def load_talk(connection: Connection, job: str) -> PartyTalk:
    """Return what is said in a party: the newest phrase of each member, and the votes on them."""
    members = list(connection.execute(_select_members(job)).mappings())
    said = sorted((row for row in members if row["said"]), key=lambda row: row["phrase"])
    phrases = tuple(Phrase(row["phrase"], row["member"], row["member_name"], row["said"]) for row in said)
    votes = connection.execute(select(party_votes).where(party_votes.c.job == job)).mappings()
    return PartyTalk(
        phrases,
        {(row["phrase"], row["member"]): row["value"] for row in votes},
        {row["member"]: row["served"] for row in members},
    )


def list_member_names(connection: Connection, job: str) -> tuple[str, ...]:
    """Return the names of all who take part, in the order in which they joined."""
    return tuple(row["member_name"] for row in connection.execute(_select_members(job)).mappings())


def _select_members(job: str) -> Select[Any]:
    query = select(party_members).where(party_members.c.job == job)
    return query.order_by(party_members.c.joined, party_members.c.member)


def join_party(connection: Connection, job: str, member: Member, now: float) -> bool:
    """Let a member take part, if they do not yet. False if the party is full."""
    mine = (party_members.c.job == job, party_members.c.member == member.id)
    if connection.execute(select(party_members.c.member).where(*mine)).first() is not None:
        return True
    count = select(func.count()).select_from(party_members).where(party_members.c.job == job)
    if connection.execute(count).scalar_one() >= MAX_MEMBERS:
        return False
    values = {"job": job, "member": member.id, "member_name": member.name[:128], "joined": now}
    connection.execute(insert(party_members).values(**values, served=0, phrase=None, said=""))
    return True


def say(connection: Connection, job: str, member: str, text: str) -> int:
    """Replace the phrase of a member who takes part, and forget the votes on the old one. Return its number."""
    numbering = update(parties).where(parties.c.job == job).values(last_phrase=parties.c.last_phrase + 1)
    number = int(connection.execute(numbering.returning(parties.c.last_phrase)).scalar_one())
    _replace_phrase(connection, job, member, number, text)
    return number


def withdraw(connection: Connection, job: str, member: str) -> None:
    """Take back the phrase of a member, and the votes on it."""
    _replace_phrase(connection, job, member, None, "")


def _replace_phrase(connection: Connection, job: str, member: str, number: int | None, text: str) -> None:
    """Give a member another phrase, or none, and forget the votes on the old one."""
    mine = (party_members.c.job == job, party_members.c.member == member)
    old = connection.execute(select(party_members.c.phrase).where(*mine)).scalar_one_or_none()
    connection.execute(delete(party_votes).where(party_votes.c.job == job, party_votes.c.phrase == old))
    connection.execute(update(party_members).where(*mine).values(phrase=number, said=text))


def find_newest_phrase(connection: Connection, job: str) -> int | None:
    """Return the number of the newest phrase that somebody still stands for."""
    return connection.execute(select(func.max(party_members.c.phrase)).where(party_members.c.job == job)).scalar_one()


def toggle_vote(connection: Connection, job: str, phrase: int, member: str, value: int) -> int | None:
    """Vote on a phrase, or take the same vote back. Return the vote that holds now, else 0; None: no such phrase."""
    live = select(party_members.c.member).where(party_members.c.job == job, party_members.c.phrase == phrase)
    if connection.execute(live).first() is None:
        return None
    mine = (party_votes.c.job == job, party_votes.c.phrase == phrase, party_votes.c.member == member)
    old = connection.execute(select(party_votes.c.value).where(*mine)).scalar_one_or_none()
    connection.execute(delete(party_votes).where(*mine))
    if old == value:
        return 0
    connection.execute(insert(party_votes).values(job=job, phrase=phrase, member=member, value=value))
    return value


def record_change(connection: Connection, job: str, members: Collection[str], now: float) -> None:
    """Record that the words were changed, and whose phrases are in them."""
    connection.execute(update(parties).where(parties.c.job == job).values(changed=now))
    served = (party_members.c.job == job, party_members.c.member.in_(list(members)))
    connection.execute(update(party_members).where(*served).values(served=party_members.c.served + 1))


def set_end(connection: Connection, job: str, ends: float) -> None:
    """Record when the party ends: its picture develops."""
    connection.execute(update(parties).where(parties.c.job == job, parties.c.ends.is_(None)).values(ends=ends))


def close_party(connection: Connection, job: str) -> None:
    """Close a party, and forget who was invited."""
    connection.execute(update(parties).where(parties.c.job == job).values(is_open=False, invited=[]))


def erase_member(connection: Connection, member: str, guild: str, until: float) -> None:
    """Delete what a member said and voted in parties, in one guild or, with an empty one, everywhere."""
    joined = [party_members.c.member == member, party_members.c.joined <= until]
    if guild:
        joined.append(party_members.c.job.in_(select(jobs.c.id).where(jobs.c.guild == guild)))
    for row in connection.execute(select(party_members.c.job, party_members.c.phrase).where(*joined)).all():
        is_theirs = (party_votes.c.member == member) | (party_votes.c.phrase == row.phrase)
        connection.execute(delete(party_votes).where(party_votes.c.job == row.job, is_theirs))
    connection.execute(delete(party_members).where(*joined))
    for party in list_open_parties(connection):
        if member in party.invited:  # its owner stays in the list, so it does not become open to all
            others = [each for each in party.invited if each != member]
            connection.execute(update(parties).where(parties.c.job == party.job).values(invited=others))


def export_member(connection: Connection, member: str) -> dict[str, list[dict[str, Any]]]:
    """Return the parties that a member takes part in: job, when they joined, and their newest phrase."""
    query = select(party_members.c.job, party_members.c.joined, party_members.c.said)
    rows = connection.execute(query.where(party_members.c.member == member).order_by(party_members.c.joined))
    return {"parties": [{"job": row.job, "joined": row.joined, "said": row.said} for row in rows]}


_IS_OPEN = text("is_open")

parties = Table(
    "parties",
    metadata,
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("place", String(64), nullable=False),  # the channel or thread, as its front end names it
    Column("minutes", Integer, nullable=False),
    Column("invited", JSON, nullable=False),  # ids of members; empty: everybody who sees the picture
    Column("is_open", Boolean, nullable=False),
    Column("ends", Float),  # once its picture develops
    Column("changed", Float, nullable=False),  # when its words were last changed
    Column("last_phrase", Integer, nullable=False),  # the number of the newest phrase that was ever said
    Index("parties_place", "place", unique=True, sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN),
)

party_members = Table(
    "party_members",
    metadata,
    Column("job", String(26), ForeignKey("parties.job", ondelete="CASCADE"), primary_key=True),
    Column("member", String(64), primary_key=True),
    Column("member_name", String(128), nullable=False),
    Column("joined", Float, nullable=False),
    Column("served", Integer, nullable=False),  # changes of the words that had a phrase of theirs
    Column("phrase", Integer),  # their newest phrase
    Column("said", Text, nullable=False),  # its text; empty: none
    Index("party_members_member", "member"),
)

party_votes = Table(
    "party_votes",
    metadata,
    Column("job", String(26), ForeignKey("parties.job", ondelete="CASCADE"), primary_key=True),
    Column("phrase", Integer, primary_key=True),
    Column("member", String(64), primary_key=True),
    Column("value", Integer, nullable=False),  # 1 or -1
    Index("party_votes_member", "member"),
)
