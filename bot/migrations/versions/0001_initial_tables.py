"""The tables of the first release, from which later migrations start. New tables are made by the metadata.

See `bot.store.schema.migration`.
"""

from __future__ import annotations

revision = "initial"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing: a database without tables is never migrated."""
