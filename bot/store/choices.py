"""The tables of what members chose, for every server and on no job: beside `tables`, in the same database."""

from __future__ import annotations

from sqlalchemy import JSON, Column, String, Table, Text

from bot.store.tables import metadata

preferences = Table(
    "preferences",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("values", JSON, nullable=False),
)

options = Table(  # what their own flags stand for
    "options",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("name", String(24), primary_key=True),
    Column("value", Text, nullable=False),
)
