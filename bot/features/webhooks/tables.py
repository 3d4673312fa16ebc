"""Tables of webhooks and of the events that they are sent. Same metadata as `bot.store.schema.tables`."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, true

from bot.store.schema.tables import metadata

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("url", String(500), nullable=False),
    Column("key_name", String(32), nullable=False),  # the API key whose jobs it follows; empty: all jobs
    Column("events", JSON, nullable=False),
    Column("secret", String(64), nullable=False),  # symmetric: we sign with it
    Column("created", Float, nullable=False),
    Column("first_line", BigInteger, nullable=False),  # audit lines up to this one are older than the webhook
    Column("last_line", BigInteger, nullable=False),  # the last audit line that was looked at
    Column("enabled", Boolean, nullable=False, server_default=true()),
    Column("reason", Text, nullable=False),  # why it is off
)

deliveries = Table(  # one row for each event of an audit line that a webhook is sent, or was
    "webhook_deliveries",
    metadata,
    Column("webhook", String(26), ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True),
    Column("line", BigInteger, primary_key=True),  # the audit line; with the webhook it makes the event's id
    Column("job", String(26), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("event", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),  # the job's, at the event
    Column("at", Float, nullable=False),  # when it happened
    Column("state", String(16), nullable=False),  # waiting, delivered, dead
    Column("tries", Integer, nullable=False),
    Column("due", Float, nullable=False),  # when it is sent next
    Column("ended", Float),  # when it was delivered or given up
    Column("error", Text, nullable=False),  # of the last try
    Index("webhook_deliveries_due", "webhook", "state", "due", "line"),
    Index("webhook_deliveries_job", "job"),
    Index("webhook_deliveries_ended", "ended"),
)
