"""The private thread of a job. Of an older job only the thread is known, not its kind: it counts as private."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

jobs = sa.table("jobs", *(sa.column(name, sa.String) for name in ("id", "channel", "thread")))
places = sa.table(
    "places", sa.column("job", sa.String), sa.column("role", sa.String), sa.column("kind", sa.String),
    sa.column("where", sa.JSON),
)  # fmt: skip


def upgrade() -> None:
    op.add_column("jobs", sa.Column("thread", sa.String(64), nullable=False, server_default=""))
    place = places.c.where["channel"].as_string()
    answer = sa.and_(places.c.job == jobs.c.id, places.c.role == "answer", places.c.kind == "discord")
    is_thread = sa.and_(answer, sa.func.length(place) > 0, place != jobs.c.channel)
    thread = sa.select(place).where(answer).scalar_subquery()
    op.execute(sa.update(jobs).where(jobs.c.channel != "", sa.exists().where(is_thread)).values(thread=thread))


def downgrade() -> None:
    op.drop_column("jobs", "thread")
