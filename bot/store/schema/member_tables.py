"""Tables of the members' preferences and flag aliases, which hold in every server. Same metadata as
`bot.store.schema.tables`.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, String, Table, Text

from bot.store.schema.tables import metadata

preferences = Table(
    "preferences",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("values", JSON, nullable=False),
)

flag_aliases = Table(  # flag aliases
    "options",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("name", String(24), primary_key=True),
    Column("value", Text, nullable=False),
)
