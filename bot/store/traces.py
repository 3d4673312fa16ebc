"""The tables of what went, and of what is left of it: beside `tables`, in the same database."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, String, Table

from bot.store.tables import NUMBER, metadata

gone = Table(  # jobs whose pictures went, or go now: by then the job's own row may be gone too
    "gone",
    metadata,
    Column("job", String(26), primary_key=True),
    Column("at", Float, nullable=False),
    Column("why", String(16), nullable=False),  # age, room, forgotten; enlarged: of a forgotten one, its row stays
    Index("gone_at", "at"),
    Index("gone_why", "why", "job"),
)

departures = Table(  # members who asked to be forgotten, as long as it is under way
    "departures",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("guild", String(64), primary_key=True),  # empty: everywhere
    Column("asked", Float, nullable=False),  # what is newer than that stays
)

spent = Table(  # charges of jobs whose rows are gone, until no limit counts them any more; hashes, no ids
    "spent",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("member", String(64), nullable=False),
    Column("guild", String(64), nullable=False),
    Column("channel", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("charged", Float, nullable=False),
    Index("spent_member", "member", "at"),
    Index("spent_guild", "guild", "at"),
    Index("spent_at", "at"),
)

veil = Table(  # the key of these hashes, as long as there are any
    "veil",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", LargeBinary, nullable=False),
)
