"""Indexes for a member's and a channel's newest jobs, and for leftovers of deleted jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    gone = sa.text("deleted IS NOT NULL")
    op.create_index("jobs_deleted", "jobs", ["id"], sqlite_where=gone, postgresql_where=gone)
    op.create_index("jobs_channel", "jobs", ["guild", "channel", "id"])
    op.create_index("jobs_member", "jobs", ["member", "id"])


def downgrade() -> None:
    for name in ("jobs_member", "jobs_channel", "jobs_deleted"):
        op.drop_index(name, "jobs")
