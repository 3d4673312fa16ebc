"""First tables: jobs, places, pictures, accounts, moves, models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _jobs()
    _of_jobs()
    _accounts()
    op.create_table(
        "models",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("warm", sa.LargeBinary, nullable=False),
        sa.Column("pool", sa.String(64), nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("key", sa.String(128)),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("parent", sa.String(26)),
        sa.Column("parent_index", sa.Integer),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("notes", sa.JSON, nullable=False),
        sa.Column("task", sa.LargeBinary, nullable=False),
        sa.Column("member", sa.String(64), nullable=False),
        sa.Column("member_name", sa.String(128), nullable=False),
        sa.Column("guild", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(64), nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("pool", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("account", sa.String(512), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("cost", sa.Float, nullable=False),
        sa.Column("charged", sa.Float, nullable=False),
        sa.Column("billed", sa.Float, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("barren", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.String(64), nullable=False),
        sa.Column("cancelling", sa.Boolean, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("sent", sa.Float),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("ms_per_step", sa.Float),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("blame", sa.String(16), nullable=False),
    )
    op.create_index("jobs_key", "jobs", ["key", "ordinal"], unique=True)
    op.create_index("jobs_waiting", "jobs", ["account", "state", "id"])
    op.create_index("jobs_state", "jobs", ["state", "pool", "rows"])
    op.create_index("jobs_deadline", "jobs", ["state", "deadline"])
    op.create_index("jobs_member_state", "jobs", ["member", "state"])
    op.create_index("jobs_member_created", "jobs", ["member", "created"])
    op.create_index("jobs_guild", "jobs", ["guild", "id"])


def _of_jobs() -> None:
    job = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    op.create_table(
        "places",
        sa.Column("job", sa.String(26), job, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("where", sa.JSON, nullable=False),
        sa.Column("delivered", sa.Float),
    )
    op.create_index("places_undelivered", "places", ["kind", "delivered"])
    op.create_table(
        "pictures",
        sa.Column("job", sa.String(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("image", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
    )
    op.create_table(
        "moves",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job", sa.String(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
    )
    op.create_index("moves_job", "moves", ["job", "id"])


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("path", sa.String(512), primary_key=True),
        sa.Column("parent", sa.String(512), nullable=False),
        sa.Column("virtual", sa.Float, nullable=False),
        sa.Column("floor", sa.Float, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("queued", sa.Integer, nullable=False),
        sa.Column("active", sa.Integer, nullable=False),
    )
    some = sa.text("queued > 0")
    op.create_index(
        "accounts_order", "accounts", ["parent", "virtual", "path"], sqlite_where=some, postgresql_where=some
    )


def downgrade() -> None:
    for table in ("models", "accounts", "moves", "pictures", "places", "jobs"):
        op.drop_table(table)
