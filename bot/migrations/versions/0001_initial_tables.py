"""The tables of the first release. `bot.store.schema` and the features' `store` explain the columns.

Until that release this file changes with them, and never after it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "initial"
down_revision = None
branch_labels = None
depends_on = None

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PATH_TYPE = sa.String(512).with_variant(sa.String(512, collation="C"), "postgresql")


def upgrade() -> None:
    _jobs()
    _of_jobs()
    _fair_order()
    _leader()
    _rules()
    _members()
    _access()
    _deletion()
    _webhooks()
    _steering()
    _parties()


def _job_column(*, primary_key: bool = True) -> sa.Column[Any]:
    job = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    return sa.Column("job", sa.String(26), job, primary_key=primary_key, nullable=False)


def _partial_index(name: str, columns: list[str], condition: str, *, unique: bool = False) -> sa.Index:
    where = sa.text(condition)
    return sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


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
        sa.Column("account", PATH_TYPE, nullable=False),
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
        sa.Column("channel", sa.String(64), nullable=False, server_default=""),
        sa.Column("private", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("check", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("deleted", sa.Float),
        sa.Column("running_here", sa.Integer),
        sa.Column("running_everywhere", sa.Integer),
        sa.Column("thread", sa.String(64), nullable=False, server_default=""),
        sa.Index("jobs_key", "key", "ordinal", unique=True),
        sa.Index("jobs_waiting", "account", "state", "id"),
        sa.Index("jobs_state", "state", "pool", "rows"),
        sa.Index("jobs_deadline", "state", "deadline"),
        sa.Index("jobs_member_state", "member", "state"),
        sa.Index("jobs_member_created", "member", "created"),
        sa.Index("jobs_guild", "guild", "id"),
        sa.Index("jobs_guild_created", "guild", "created", "channel", "charged"),
        sa.Index("jobs_guild_state", "guild", "state", "channel"),
        sa.Index("jobs_parent", "parent", "action"),
        _partial_index("jobs_deleted", ["id"], "deleted IS NOT NULL"),
        sa.Index("jobs_channel", "guild", "channel", "id"),
        sa.Index("jobs_member", "member", "id"),
        sa.Index("jobs_ended", "ended"),
    )


def _of_jobs() -> None:
    op.create_table(
        "places",
        _job_column(),
        sa.Column("role", sa.String(16), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("where", sa.JSON, nullable=False),
        sa.Column("message", sa.String(32), nullable=False),
        sa.Column("delivered", sa.Float),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Index("places_undelivered", "kind", "delivered"),
        sa.Index("places_message", "message"),
    )
    op.create_table(
        "pictures",
        _job_column(),
        sa.Column("image", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False, server_default="unchecked"),
        sa.Column("reviewed", sa.String(16), nullable=False, server_default=""),
        sa.Index("pictures_sha256", "sha256"),
    )
    op.create_table(
        "moves",
        sa.Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
        _job_column(primary_key=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Index("moves_job", "job", "id"),
    )


def _fair_order() -> None:
    op.create_table(
        "accounts",
        sa.Column("path", PATH_TYPE, primary_key=True),
        sa.Column("parent", PATH_TYPE, nullable=False),
        sa.Column("virtual", sa.Float, nullable=False),
        sa.Column("floor", sa.Float, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("queued", sa.Integer, nullable=False),
        sa.Column("active", sa.Integer, nullable=False),
        sa.Column("since", sa.Float),
        _partial_index("accounts_order", ["parent", "virtual", "path"], "queued > 0"),
        _partial_index("accounts_since", ["since", "path"], "queued > 0 AND since IS NOT NULL"),
    )
    op.create_table(
        "models",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("warm", sa.LargeBinary, nullable=False),
        sa.Column("pool", sa.String(64), nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )


def _leader() -> None:
    op.create_table(
        "terms",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(64), nullable=False, server_default=""),
        sa.Column("beat", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("over", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("store", sa.String(26), nullable=False, server_default=""),
    )
    op.create_table(
        "commits",
        sa.Column("writer", sa.String(26), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )


def _rules() -> None:
    op.create_table(
        "rules",
        sa.Column("guild", sa.String(64), primary_key=True),
        sa.Column("scope", sa.String(16), primary_key=True),
        sa.Column("subject", sa.String(64), primary_key=True),
        sa.Column("setting", sa.String(32), primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Index("rules_setting", "setting"),
    )
    op.create_table(
        "changes",
        sa.Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
        sa.Column("guild", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(128), nullable=False),
        sa.Column("what", sa.String(32), nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("undoes", ROW_NUMBER),
        sa.Index("changes_guild", "guild", "id"),
    )
    op.create_table(
        "incidents",
        sa.Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
        sa.Column("guild", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(128), nullable=False),
        sa.Column("job", sa.String(26), nullable=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("closed", sa.Float),
        sa.Index("incidents_guild", "guild", "id"),
        sa.Index("incidents_job", "job", "closed"),
        sa.Index("incidents_actor", "actor", "kind", "at"),
    )


def _members() -> None:
    op.create_table(
        "preferences",
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("values", sa.JSON, nullable=False),
    )
    op.create_table(
        "favourites",
        sa.Column("member", sa.String(64), primary_key=True),
        _job_column(),
        sa.Column("image", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Index("favourites_member", "member", "at"),
        sa.Index("favourites_job", "job"),
    )
    op.create_table(
        "options",
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(24), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def _access() -> None:
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("visitor", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("issued", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("used", sa.Float, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("issued", sa.Float, nullable=False),
        sa.Column("expires", sa.Float),
        sa.Column("used", sa.Float),
        sa.Column("revoked", sa.Float),
        sa.Index("api_keys_name", "name"),
    )


def _deletion() -> None:
    op.create_table(
        "gone",
        sa.Column("job", sa.String(26), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("why", sa.String(16), nullable=False),
        sa.Index("gone_at", "at"),
        sa.Index("gone_why", "why", "job"),
    )
    op.create_table(
        "departures",
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("guild", sa.String(64), primary_key=True),
        sa.Column("asked", sa.Float, nullable=False),
    )
    op.create_table(
        "spent",
        sa.Column("id", ROW_NUMBER, primary_key=True, autoincrement=True),
        sa.Column("member", sa.String(64), nullable=False),
        sa.Column("guild", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("charged", sa.Float, nullable=False),
        sa.Index("spent_member", "member", "at"),
        sa.Index("spent_guild", "guild", "at"),
        sa.Index("spent_at", "at"),
    )
    op.create_table(
        "veil", sa.Column("id", sa.Integer, primary_key=True), sa.Column("key", sa.LargeBinary, nullable=False)
    )


def _webhooks() -> None:
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
        _job_column(primary_key=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
        sa.Column("error", sa.Text, nullable=False),
        sa.Index("webhook_deliveries_due", "webhook", "state", "due", "line"),
        sa.Index("webhook_deliveries_job", "job"),
        sa.Index("webhook_deliveries_ended", "ended"),
    )


def _steering() -> None:
    op.create_table(
        "amendments",
        _job_column(),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("member", sa.String(64), nullable=False),
        sa.Column("member_name", sa.String(128), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("key", sa.String(128)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("change", sa.JSON, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("cost", sa.Float, nullable=False),
        sa.Index("amendments_member", "member", "at"),
        _partial_index("amendments_waiting", ["job"], "state = 'waiting'"),
    )


def _parties() -> None:
    op.create_table(
        "parties",
        _job_column(),
        sa.Column("place", sa.String(64), nullable=False),
        sa.Column("minutes", sa.Integer, nullable=False),
        sa.Column("invited", sa.JSON, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("ends", sa.Float),
        sa.Column("changed", sa.Float, nullable=False),
        sa.Column("last_phrase", sa.Integer, nullable=False),
        _partial_index("parties_place", ["place"], "is_open", unique=True),
    )
    op.create_table(
        "party_members",
        sa.Column("job", sa.String(26), sa.ForeignKey("parties.job", ondelete="CASCADE"), primary_key=True),
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("member_name", sa.String(128), nullable=False),
        sa.Column("joined", sa.Float, nullable=False),
        sa.Column("served", sa.Integer, nullable=False),
        sa.Column("phrase", sa.Integer),
        sa.Column("said", sa.Text, nullable=False),
        sa.Index("party_members_member", "member"),
    )
    op.create_table(
        "party_votes",
        sa.Column("job", sa.String(26), sa.ForeignKey("parties.job", ondelete="CASCADE"), primary_key=True),
        sa.Column("phrase", sa.Integer, primary_key=True),
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
        sa.Index("party_votes_member", "member"),
    )
