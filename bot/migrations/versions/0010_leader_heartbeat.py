"""Leader terms: holder, heartbeat, clean end, and the store's id."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("terms", sa.Column("holder", sa.String(64), nullable=False, server_default=""))
    op.add_column("terms", sa.Column("beat", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("terms", sa.Column("over", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("terms", sa.Column("store", sa.String(26), nullable=False, server_default=""))


def downgrade() -> None:
    for column in ("store", "over", "beat", "holder"):
        op.drop_column("terms", column)
