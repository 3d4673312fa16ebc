"""Tables of removed jobs, pending erasures and archived charges. Same metadata as `bot.store.schema.tables`."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, String, Table

from bot.store.schema.tables import ROW_NUMBER, metadata

deleted_jobs = Table(  # jobs that are or were removed; the job's own row may not exist any more
    "gone",
    metadata,
    Column("job", String(26), primary_key=True),
    Column("at", Float, nullable=False),
    Column("why", String(16), nullable=False),  # age, room, forgotten; enlarged: upscale of a forgotten job
    Index("gone_at", "at"),
    Index("gone_why", "why", "job"),
)

erasure_requests = Table(  # pending requests of members to be forgotten
    "departures",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("guild", String(64), primary_key=True),  # empty: everywhere
    Column("asked", Float, nullable=False),  # newer data stays
)

archived_charges = Table(  # charges of removed jobs, while a limit counts them; hashes instead of ids
    "spent",
    metadata,
    Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("member", String(64), nullable=False),
    Column("guild", String(64), nullable=False),
    Column("channel", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("charged", Float, nullable=False),
    Index("spent_member", "member", "at"),
    Index("spent_guild", "guild", "at"),
    Index("spent_at", "at"),
)

charge_keys = Table(  # the key of these hashes, while there are any
    "veil", metadata, Column("id", Integer, primary_key=True), Column("key", LargeBinary, nullable=False)
)
