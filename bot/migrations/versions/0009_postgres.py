"""PostgreSQL: 64-bit ids, collation of paths, and the commit log that resolves lost replies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

PATHS = (("accounts", "path"), ("accounts", "parent"), ("jobs", "account"))
NUMBERED = ("moves", "changes", "incidents", "spent")


def upgrade() -> None:
    op.create_table(
        "commits",
        sa.Column("writer", sa.String(26), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    if op.get_context().dialect.name == "postgresql":
        _numbers("BIGINT")
        _paths("C")


def _numbers(kind: str) -> None:
    """Change the type of ids on PostgreSQL; SQLite's are 64-bit already."""
    for table in NUMBERED:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN id TYPE {kind}")
        op.execute(f"ALTER SEQUENCE {table}_id_seq AS {kind}")
    op.execute(f"ALTER TABLE changes ALTER COLUMN undoes TYPE {kind}")


def _paths(order: str) -> None:
    """Change the collation of all path columns: an index does not serve a comparison in another collation."""
    for table, column in PATHS:
        op.execute(f'ALTER TABLE {table} ALTER COLUMN {column} TYPE VARCHAR(512) COLLATE "{order}"')


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        _paths("default")
        _numbers("INTEGER")
    op.drop_table("commits")
