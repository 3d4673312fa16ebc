"""Retention: removed jobs, members who asked to be forgotten, and anonymised charges."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gone",
        sa.Column("job", sa.String(26), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("why", sa.String(16), nullable=False),
    )
    op.create_index("gone_at", "gone", ["at"])
    op.create_index("gone_why", "gone", ["why", "job"])
    op.create_table(
        "departures",
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("guild", sa.String(64), primary_key=True),
        sa.Column("asked", sa.Float, nullable=False),
    )
    op.create_table(
        "spent",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("member", sa.String(64), nullable=False),
        sa.Column("guild", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("charged", sa.Float, nullable=False),
    )
    op.create_index("spent_member", "spent", ["member", "at"])
    op.create_index("spent_guild", "spent", ["guild", "at"])
    op.create_index("spent_at", "spent", ["at"])
    op.create_table(
        "veil",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
    )
    op.create_index("jobs_ended", "jobs", ["ended"])
    op.create_index("favourites_job", "favourites", ["job"])


def downgrade() -> None:
    op.drop_index("favourites_job", "favourites")
    op.drop_index("jobs_ended", "jobs")
    for table in ("veil", "spent", "departures", "gone"):
        op.drop_table(table)
