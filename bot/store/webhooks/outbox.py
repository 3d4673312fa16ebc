"""The outbox of the webhooks in SQL: each event of an audit line that a webhook asks for, until it is delivered.

The audit line is committed with its transition (`bot.store.transitions.state_change`), so no event is lost with a
process: what was not collected yet is collected later. Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    exists,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)

from bot.policy.webhooks import STATE_EVENTS, WebhookEvent
from bot.store.members.api_keys import KEY_MEMBER_PREFIX
from bot.store.schema.tables import audit_lines, jobs
from bot.store.schema.webhook_tables import deliveries as table
from bot.store.schema.webhook_tables import webhooks
from bot.store.transitions.job_admin import OVERLAP_LINES, read_last_line
from bot.store.webhook_switches import KEY_ENDED, disable_webhook, disable_webhooks, enable_webhook
from bot.store.webhooks.endpoints import Webhook, is_active, is_bereft, to_webhook

MAX_LINES = 2000  # audit lines that are looked at in one transaction, for one webhook
MAX_WAITING = 10_000  # events that may wait for one webhook: with more it is off
MAX_MISSED = MAX_WAITING // 4  # audit lines that are looked at again when a webhook is turned on
KEPT_SECONDS = 7 * 86_400.0  # an event that was delivered or given up can be replayed for so long
FULL = f"More than {MAX_WAITING} events waited for it. `darkroom webhook replay` turns it on again."

DeliveryState = Literal["waiting", "delivered", "dead"]


@dataclass(frozen=True)
class WebhookDelivery:
    """One event for one webhook. Times are seconds since 1970: `at` it happened, `due` it is sent, `ended` it was
    delivered or given up. `attempt`: of the job. `error`: of the last try.
    """

    webhook: str
    line: int
    job: str
    event: WebhookEvent
    attempt: int
    at: float
    state: DeliveryState
    tries: int
    due: float
    ended: float | None
    error: str

    @property
    def id(self) -> str:
        """The event's id, the same at each try: endpoints know by it what they have."""
        return f"msg_{self.webhook}_{self.line}"


def needs_collection(connection: Connection, now: float) -> bool:
    """Return whether `collect_events` may find any, or has something to tidy up."""
    is_behind = is_active(now) & (webhooks.c.last_line < read_last_line(connection))
    meant_webhooks = exists().where(or_(is_behind, is_bereft(now)))
    return bool(connection.execute(select(or_(meant_webhooks, exists().where(_is_old(now))))).scalar_one())


def collect_events(connection: Connection, now: float) -> int:
    """Put the events of new audit lines into the outbox; return how many.

    Old ones are dropped, and webhooks whose key has ended are off.

    The last lines are read again: another process may commit a smaller number later.
    """
    connection.execute(table.delete().where(_is_old(now)))
    disable_webhooks(connection, is_bereft(now), now, KEY_ENDED)
    last_line = read_last_line(connection)
    rows = connection.execute(select(webhooks).where(is_active(now), webhooks.c.last_line < last_line)).mappings().all()
    return sum(_collect_for(connection, row, last_line, now) for row in rows)


def _collect_for(connection: Connection, row: RowMapping, last_line: int, now: float) -> int:
    webhook = to_webhook(row)
    until_line = min(last_line, row["last_line"] + MAX_LINES)
    from_line = max(row["first_line"], row["last_line"] - OVERLAP_LINES)
    states = [state for state, event in STATE_EVENTS.items() if event in webhook.events]
    known = exists().where(table.c.webhook == webhook.id, table.c.line == audit_lines.c.id)
    conditions = [
        audit_lines.c.id > from_line, audit_lines.c.id <= until_line, audit_lines.c.target.in_(states),
        audit_lines.c.source != audit_lines.c.target, ~known,
    ]  # fmt: skip
    if webhook.key_name:
        conditions.append(jobs.c.member == f"{KEY_MEMBER_PREFIX}{webhook.key_name}")
    query = select(audit_lines).join(jobs, jobs.c.id == audit_lines.c.job).where(*conditions)
    events = [_to_values(webhook, line, now) for line in connection.execute(query).mappings()]
    if events:
        connection.execute(insert(table), events)
    connection.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(last_line=until_line))
    if events and _count_waiting(connection, webhook.id) > MAX_WAITING:
        disable_webhook(connection, webhook.id, now, FULL)
    return len(events)


def _is_old(now: float) -> ColumnElement[bool]:
    return table.c.ended <= now - KEPT_SECONDS


def _to_values(webhook: Webhook, line: RowMapping, now: float) -> dict[str, Any]:
    return {
        "webhook": webhook.id, "line": line["id"], "job": line["job"], "event": STATE_EVENTS[line["target"]],
        "attempt": line["attempt"], "at": line["at"], "state": "waiting", "tries": 0, "due": now, "error": "",
    }  # fmt: skip


def _count_waiting(connection: Connection, webhook: str) -> int:
    conditions = (table.c.webhook == webhook, table.c.state == "waiting")
    return int(connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one())


def list_due(
    connection: Connection, now: float, busy: Sequence[str], limit: int
) -> list[tuple[WebhookDelivery, Webhook]]:
    """Return events that are due, up to `limit` of each webhook, the first due first; none of webhooks in `busy`."""
    query = select(webhooks).where(is_active(now), webhooks.c.id.not_in(busy)).order_by(webhooks.c.id)
    by_id = {row["id"]: to_webhook(row) for row in connection.execute(query).mappings()}
    if not by_id:
        return []
    due_query = union_all(*(_select_due(webhook, now, limit) for webhook in by_id))
    events = [_to_delivery(row) for row in connection.execute(due_query).mappings()]
    events.sort(key=lambda event: (event.due, event.line, event.webhook))
    return [(event, by_id[event.webhook]) for event in events]


def _select_due(webhook: str, now: float, limit: int) -> Select[Any]:
    """Of one webhook: the index ends the search after `limit` rows, however many wait for this one or another."""
    is_due = (table.c.webhook == webhook) & (table.c.state == "waiting") & (table.c.due <= now)
    return select(select(table).where(is_due).order_by(table.c.due, table.c.line).limit(limit).subquery())


def record_delivered(connection: Connection, delivery: WebhookDelivery, now: float) -> None:
    """Record that the endpoint has the event, also if it was given up meanwhile."""
    values = {"state": "delivered", "tries": delivery.tries + 1, "ended": now, "error": ""}
    connection.execute(update(table).where(_is_event(delivery)).values(**values))


def record_failed(
    connection: Connection, delivery: WebhookDelivery, now: float, delay: float | None, error: str
) -> None:
    """Record a try that failed. `delay`: seconds until the next one; None: the event is a dead letter."""
    ending = {"state": "dead", "ended": now} if delay is None else {"due": now + delay}
    values = {"tries": delivery.tries + 1, "error": error} | ending
    connection.execute(update(table).where(_is_event(delivery), table.c.state == "waiting").values(**values))


def list_dead(connection: Connection, webhook: str, limit: int) -> list[WebhookDelivery]:
    """Return the dead letters of a webhook, the newest first."""
    query = select(table).where(table.c.webhook == webhook, table.c.state == "dead")
    return [
        _to_delivery(row) for row in connection.execute(query.order_by(table.c.line.desc()).limit(limit)).mappings()
    ]


def replay(connection: Connection, webhook: str, now: float, *, since: float | None) -> int:
    """Turn a webhook on, and send its dead letters again, or with `since` all its events from then on; return how many.

    The newest are taken, up to half of what may wait: the rest is left for events that come meanwhile.
    """
    enable_webhook(connection, webhook, read_last_line(connection) - MAX_MISSED)
    is_meant = table.c.state == "dead" if since is None else and_(table.c.state != "waiting", table.c.at >= since)
    room = max(0, MAX_WAITING // 2 - _count_waiting(connection, webhook))
    query = select(table.c.line).where(table.c.webhook == webhook, is_meant).order_by(table.c.line.desc()).limit(room)
    values = {"state": "waiting", "tries": 0, "due": now, "ended": None}
    lines = select(query.subquery().c.line)
    return connection.execute(
        update(table).where(table.c.webhook == webhook, table.c.line.in_(lines)).values(**values)
    ).rowcount


def count_by_state(connection: Connection) -> dict[tuple[str, str], int]:
    """Return how many events of each webhook are in each state."""
    query = select(table.c.webhook, table.c.state, func.count()).group_by(table.c.webhook, table.c.state)
    return {(webhook, state): count for webhook, state, count in connection.execute(query)}


def _is_event(delivery: WebhookDelivery) -> ColumnElement[bool]:
    return and_(table.c.webhook == delivery.webhook, table.c.line == delivery.line)


def _to_delivery(row: RowMapping) -> WebhookDelivery:
    return WebhookDelivery(**dict(row))
