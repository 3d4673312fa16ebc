"""Fill message and channel of old jobs, which only had them inside the JSON of their place."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

jobs = sa.table("jobs", sa.column("id", sa.String), sa.column("channel", sa.String))
places = sa.table(
    "places", sa.column("job", sa.String), sa.column("role", sa.String), sa.column("kind", sa.String),
    sa.column("where", sa.JSON), sa.column("message", sa.String),
)  # fmt: skip


def upgrade() -> None:
    message, channel = (places.c.where[name].as_string() for name in ("message", "channel"))
    op.execute(sa.update(places).where(places.c.message == "", sa.func.length(message) > 0).values(message=message))
    asked = sa.select(channel).where(places.c.job == jobs.c.id, places.c.role == "answer").scalar_subquery()
    theirs = sa.select(places.c.job).where(places.c.kind == "discord", sa.func.length(channel) > 0)
    op.execute(sa.update(jobs).where(jobs.c.channel == "", jobs.c.id.in_(theirs)).values(channel=asked))


def downgrade() -> None:
    """Do nothing: the places still have both."""
