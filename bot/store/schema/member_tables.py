"""Tables of the members' preferences, which hold in every server, of visitors' sessions and API keys.

Same metadata as `bot.store.schema.tables`.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, String, Table

from bot.store.schema.tables import metadata

preferences = Table(
    "preferences", metadata, Column("member", String(64), primary_key=True), Column("values", JSON, nullable=False)
)

sessions = Table(  # of visitors to the chatroom
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the cookie, which is stored nowhere
    Column("visitor", String(32), nullable=False),
    Column("kind", String(8), nullable=False),  # open: of an open room, by nobody's leave; guest; owner: the operator
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float, nullable=False),  # within a minute
)

api_keys = Table(  # of programs
    "api_keys",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the secret, which is stored nowhere
    Column("name", String(32), nullable=False),  # one valid key of a name at a time
    Column("scopes", JSON, nullable=False),
    Column("issued", Float, nullable=False),
    Column("expires", Float),  # null: never
    Column("used", Float),  # within a minute; null: never
    Column("revoked", Float),
    Index("api_keys_name", "name"),
)
