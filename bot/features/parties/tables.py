"""Tables of parties: members who steer one picture together. Same metadata as `bot.store.schema.tables`."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, text

from bot.store.schema.tables import metadata

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
