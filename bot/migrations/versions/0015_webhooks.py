"""Webhooks, and the events that they are sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(26), primary_key=True),
        sa.Column("url", sa.String(500), nullable=False),
        sa.Column("key_name", sa.String(32), nullable=False),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("first_line", sa.BigInteger, nullable=False),
        sa.Column("last_line", sa.BigInteger, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("webhook", sa.String(26), sa.ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("line", sa.BigInteger, primary_key=True),
        sa.Column("job", sa.String(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_index("webhook_deliveries_due", "webhook_deliveries", ["webhook", "state", "due", "line"])
    op.create_index("webhook_deliveries_job", "webhook_deliveries", ["job"])
    op.create_index("webhook_deliveries_ended", "webhook_deliveries", ["ended"])


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhooks")
