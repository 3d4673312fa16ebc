"""Discord: one row for each destination of a job, rules and their changes, preferences, favourites, incidents."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in _of_jobs():
        op.add_column("jobs", column)
    for column in _of_pictures():
        op.add_column("pictures", column)
    op.create_index("jobs_guild_created", "jobs", ["guild", "created", "channel", "charged"])
    _places()
    _rules()
    _members()


def _of_jobs() -> list[sa.Column[Any]]:
    return [
        sa.Column("channel", sa.String(64), nullable=False, server_default=""),
        sa.Column("private", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("check", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("deleted", sa.Float),
    ]


def _of_pictures() -> list[sa.Column[Any]]:
    return [
        sa.Column("verdict", sa.String(16), nullable=False, server_default="unchecked"),
        sa.Column("reviewed", sa.String(16), nullable=False, server_default=""),
    ]


def _places() -> None:
    """Key the table by job and role, since a job may have several destinations. SQLite needs a new table for that."""
    op.create_table(
        "shown",
        sa.Column("job", sa.String(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("role", sa.String(16), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("where", sa.JSON, nullable=False),
        sa.Column("message", sa.String(32), nullable=False),
        sa.Column("delivered", sa.Float),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.execute(
        'INSERT INTO shown (job, role, kind, "where", message, delivered, reason) '
        "SELECT job, 'answer', kind, \"where\", '', delivered, '' FROM places"
    )
    op.drop_index("places_undelivered", "places")
    op.drop_table("places")
    op.rename_table("shown", "places")
    op.create_index("places_undelivered", "places", ["kind", "delivered"])
    op.create_index("places_message", "places", ["message"])


def _rules() -> None:
    op.create_table(
        "rules",
        sa.Column("guild", sa.String(64), primary_key=True),
        sa.Column("scope", sa.String(16), primary_key=True),
        sa.Column("subject", sa.String(64), primary_key=True),
        sa.Column("setting", sa.String(32), primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("guild", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(128), nullable=False),
        sa.Column("what", sa.String(32), nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("undoes", sa.Integer),
    )
    op.create_index("changes_guild", "changes", ["guild", "id"])
    op.create_table(
        "incidents",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("guild", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(128), nullable=False),
        sa.Column("job", sa.String(26), nullable=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("closed", sa.Float),
    )
    op.create_index("incidents_guild", "incidents", ["guild", "id"])


def _members() -> None:
    op.create_table(
        "preferences",
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("values", sa.JSON, nullable=False),
    )
    op.create_table(
        "favourites",
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(26), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("image", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_index("favourites_member", "favourites", ["member", "at"])


def downgrade() -> None:
    for table in ("favourites", "preferences", "incidents", "changes", "rules"):
        op.drop_table(table)
    op.execute("DELETE FROM places WHERE role <> 'answer'")
    op.drop_index("jobs_guild_created", "jobs")
    op.drop_index("places_message", "places")
    with op.batch_alter_table("places") as places:
        for column in ("role", "message", "reason"):
            places.drop_column(column)
        places.create_primary_key("places_pkey", ["job"])
    for column in _of_pictures():
        op.drop_column("pictures", column.name)
    for column in _of_jobs():
        op.drop_column("jobs", column.name)
