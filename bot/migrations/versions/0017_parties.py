"""Parties: members who steer one picture together, what they say, and their votes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "parties",
        sa.Column("job", sa.String(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("place", sa.String(64), nullable=False),
        sa.Column("minutes", sa.Integer, nullable=False),
        sa.Column("invited", sa.JSON, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("ends", sa.Float),
        sa.Column("changed", sa.Float, nullable=False),
        sa.Column("last_phrase", sa.Integer, nullable=False),
    )
    is_open = sa.text("is_open")
    op.create_index("parties_place", "parties", ["place"], unique=True, sqlite_where=is_open, postgresql_where=is_open)
    op.create_table(
        "party_members",
        sa.Column("job", sa.String(26), sa.ForeignKey("parties.job", ondelete="CASCADE"), primary_key=True),
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("member_name", sa.String(128), nullable=False),
        sa.Column("joined", sa.Float, nullable=False),
        sa.Column("served", sa.Integer, nullable=False),
        sa.Column("phrase", sa.Integer),
        sa.Column("said", sa.Text, nullable=False),
    )
    op.create_index("party_members_member", "party_members", ["member"])
    op.create_table(
        "party_votes",
        sa.Column("job", sa.String(26), sa.ForeignKey("parties.job", ondelete="CASCADE"), primary_key=True),
        sa.Column("phrase", sa.Integer, primary_key=True),
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
    )
    op.create_index("party_votes_member", "party_votes", ["member"])


def downgrade() -> None:
    for name in ("party_votes", "party_members", "parties"):
        op.drop_table(name)
