"""Webhooks in SQL. Each function works inside its caller's transaction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, exists, or_, select

from bot.policy.webhooks import WebhookEvent
from bot.store.members.api_keys import is_valid
from bot.store.schema.member_tables import api_keys
from bot.store.schema.webhook_tables import webhooks as table
from bot.store.transitions.job_admin import read_last_line

MAX_WEBHOOKS = 100
MAX_KEY_WEBHOOKS = 10  # of one key


@dataclass(frozen=True)
class Webhook:
    """An address that is sent events. `key_name`: the API key whose jobs it follows; empty: it follows all jobs.

    `secret`: begins with `whsec_`. `created`: seconds since 1970. `enabled` False: it is sent nothing, for `reason`.
    """

    id: str
    url: str
    key_name: str
    events: tuple[WebhookEvent, ...]
    secret: str
    created: float
    enabled: bool = True
    reason: str = ""


def insert_webhook(connection: Connection, webhook: Webhook) -> bool:
    """Store a webhook; it is sent events from now on. False, and nothing stored, if there are too many."""
    others = list_webhooks(connection)
    own = [other for other in others if webhook.key_name and other.key_name == webhook.key_name]
    if len(others) >= MAX_WEBHOOKS or len(own) >= MAX_KEY_WEBHOOKS:
        return False
    line = read_last_line(connection)
    values = asdict(webhook) | {"events": list(webhook.events), "first_line": line, "last_line": line}
    connection.execute(table.insert().values(**values))
    return True


def list_webhooks(connection: Connection) -> list[Webhook]:
    """Return every webhook, the oldest first."""
    rows = connection.execute(select(table).order_by(table.c.created, table.c.id)).mappings()
    return [to_webhook(row) for row in rows]


def list_active_webhooks(connection: Connection, now: float) -> list[Webhook]:
    """Return the webhooks that are sent events now."""
    rows = connection.execute(select(table).where(is_active(now)).order_by(table.c.id)).mappings()
    return [to_webhook(row) for row in rows]


def delete_webhook(connection: Connection, webhook: str) -> bool:
    """Delete a webhook with all its events; False if there is none."""
    return connection.execute(table.delete().where(table.c.id == webhook)).rowcount > 0


def is_active(now: float) -> ColumnElement[bool]:
    """Return the condition that a webhook is on, and the key that it belongs to is valid."""
    return table.c.enabled & _has_key(now)


def is_bereft(now: float) -> ColumnElement[bool]:
    """Return the condition that a webhook is on although its key has ended."""
    return table.c.enabled & ~_has_key(now)


def _has_key(now: float) -> ColumnElement[bool]:
    has_key = exists().where(api_keys.c.name == table.c.key_name, is_valid(now))
    return or_(table.c.key_name == "", has_key)


def to_webhook(row: RowMapping) -> Webhook:
    """Return a row of the table as a value."""
    names = ("id", "url", "key_name", "secret", "created", "enabled", "reason")
    values: dict[str, Any] = {name: row[name] for name in names}
    return Webhook(events=tuple(row["events"]), **values)
