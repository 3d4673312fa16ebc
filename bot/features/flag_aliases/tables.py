"""The table of members' flag aliases, which hold in every server."""

from __future__ import annotations

from sqlalchemy import Column, String, Table, Text

from bot.store.schema.tables import metadata

flag_aliases = Table(
    "options",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("name", String(24), primary_key=True),
    Column("value", Text, nullable=False),
)
