"""Leader terms, and since when each member waits for a turn."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "terms",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("term", sa.BigInteger, nullable=False),
    )
    op.add_column("accounts", sa.Column("since", sa.Float))
    op.execute("UPDATE accounts SET since = 0 WHERE queued > 0 AND path LIKE '%/%/%/%'")  # waits since an unknown time
    waits = sa.text("queued > 0 AND since IS NOT NULL")
    op.create_index("accounts_since", "accounts", ["since", "path"], sqlite_where=waits, postgresql_where=waits)


def downgrade() -> None:
    op.drop_index("accounts_since", "accounts")
    op.drop_column("accounts", "since")
    op.drop_table("terms")
