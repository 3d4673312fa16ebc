"""Changes of running jobs: who asked for what, and from which step on it holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "amendments",
        sa.Column("job", sa.String(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("member", sa.String(64), nullable=False),
        sa.Column("member_name", sa.String(128), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("key", sa.String(128)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("change", sa.JSON, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("cost", sa.Float, nullable=False),
    )
    op.create_index("amendments_member", "amendments", ["member", "at"])
    is_waiting = sa.text("state = 'waiting'")
    op.create_index("amendments_waiting", "amendments", ["job"], sqlite_where=is_waiting, postgresql_where=is_waiting)


def downgrade() -> None:
    op.drop_table("amendments")
