"""Per-member limits of jobs at once: each job carries them for the dispatcher."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = ("running_here", "running_everywhere")


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("jobs", sa.Column(name, sa.Integer))
    op.create_index("jobs_guild_state", "jobs", ["guild", "state", "channel"])
    op.create_index("rules_setting", "rules", ["setting"])


def downgrade() -> None:
    op.drop_index("rules_setting", "rules")
    op.drop_index("jobs_guild_state", "jobs")
    for name in COLUMNS:
        op.drop_column("jobs", name)
