"""Turns webhooks off and on in SQL. Each function works inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, select, update

from bot.store.schema.webhook_tables import deliveries, webhooks

REVOKED = "Its key was revoked. `darkroom webhook replay` turns it on again under a new key."
KEY_ENDED = "Its key ended. `darkroom webhook replay` turns it on again under a new key."


def disable_webhooks(connection: Connection, condition: ColumnElement[bool], now: float, reason: str) -> None:
    """Send the webhooks that are on and meet a condition nothing from now on, for `reason`, a sentence.

    What waits for them becomes dead letters, which are dropped in time.
    """
    ids = select(webhooks.c.id).where(webhooks.c.enabled, condition)
    is_stranded = deliveries.c.webhook.in_(ids) & (deliveries.c.state == "waiting")
    connection.execute(update(deliveries).where(is_stranded).values(state="dead", ended=now, error=reason))
    connection.execute(update(webhooks).where(webhooks.c.enabled, condition).values(enabled=False, reason=reason))


def disable_webhook(connection: Connection, webhook: str, now: float, reason: str) -> None:
    """Send one webhook nothing from now on, for `reason`, a sentence."""
    disable_webhooks(connection, webhooks.c.id == webhook, now, reason)


def disable_key_webhooks(connection: Connection, key_name: str, now: float, reason: str) -> None:
    """Send the webhooks of a key nothing from now on: who had the key may have added them."""
    disable_webhooks(connection, webhooks.c.key_name == key_name, now, reason)


def enable_webhook(connection: Connection, webhook: str, from_line: int) -> None:
    """Send a webhook that is off events again, those of audit lines after `from_line` that it has not seen."""
    is_meant = (webhooks.c.id == webhook) & ~webhooks.c.enabled
    connection.execute(update(webhooks).where(is_meant, webhooks.c.last_line < from_line).values(last_line=from_line))
    connection.execute(update(webhooks).where(is_meant).values(enabled=True, reason=""))
