"""Webhooks in SQL: the endpoints, and the outbox that keeps each event for an endpoint until it is delivered.

The audit line is committed with its transition (`bot.store.transitions.job_writes`), so no event is lost with a
process: what was not collected yet is collected later. Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    RowMapping,
    Select,
    String,
    Table,
    Text,
    and_,
    exists,
    func,
    insert,
    or_,
    select,
    true,
    union_all,
    update,
)

from bot.features.webhooks.rules import STATE_EVENTS, WebhookEvent
from bot.store.members.api_keys import KEY_ENDED, KEY_MEMBER_PREFIX, is_valid
from bot.store.schema.tables import api_keys, audit_lines, jobs, metadata
from bot.store.transitions.job_admin import OVERLAP_LINES, read_last_line

MAX_WEBHOOKS = 100
MAX_KEY_WEBHOOKS = 10  # of one key
MAX_LINES = 2000  # audit lines that are looked at in one transaction, for one webhook
MAX_WAITING = 10_000  # events that may wait for one webhook: with more it is off
MAX_MISSED = MAX_WAITING // 4  # audit lines that are looked at again when a webhook is turned on
KEPT_SECONDS = 7 * 86_400.0  # an event that was delivered or given up can be replayed for so long
FULL = f"More than {MAX_WAITING} events waited for it. `darkroom webhook replay` turns it on again."
HOW_TO_TURN_ON = "`darkroom webhook replay` turns it on again under a new key."
KEY_NOTE = "Its webhooks are off. `darkroom webhook replay ID` turns one on under a new key:"

DeliveryState = Literal["waiting", "delivered", "dead"]


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
    connection.execute(webhooks.insert().values(**values))
    return True


def list_webhooks(connection: Connection) -> list[Webhook]:
    """Return every webhook, the oldest first."""
    rows = connection.execute(select(webhooks).order_by(webhooks.c.created, webhooks.c.id)).mappings()
    return [to_webhook(row) for row in rows]


def list_active_webhooks(connection: Connection, now: float) -> list[Webhook]:
    """Return the webhooks that are sent events now."""
    rows = connection.execute(select(webhooks).where(is_active(now)).order_by(webhooks.c.id)).mappings()
    return [to_webhook(row) for row in rows]


def delete_webhook(connection: Connection, webhook: str) -> bool:
    """Delete a webhook with all its events; False if there is none."""
    return connection.execute(webhooks.delete().where(webhooks.c.id == webhook)).rowcount > 0


def is_active(now: float) -> ColumnElement[bool]:
    """Return the condition that a webhook is on, and the key that it belongs to is valid."""
    return webhooks.c.enabled & _has_key(now)


def is_bereft(now: float) -> ColumnElement[bool]:
    """Return the condition that a webhook is on although its key has ended."""
    return webhooks.c.enabled & ~_has_key(now)


def _has_key(now: float) -> ColumnElement[bool]:
    has_key = exists().where(api_keys.c.name == webhooks.c.key_name, is_valid(now))
    return or_(webhooks.c.key_name == "", has_key)


def to_webhook(row: RowMapping) -> Webhook:
    """Return a row of the table as a value."""
    names = ("id", "url", "key_name", "secret", "created", "enabled", "reason")
    values: dict[str, Any] = {name: row[name] for name in names}
    return Webhook(events=tuple(row["events"]), **values)


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


def enable_webhook(connection: Connection, webhook: str, from_line: int) -> None:
    """Send a webhook that is off events again, those of audit lines after `from_line` that it has not seen."""
    is_meant = (webhooks.c.id == webhook) & ~webhooks.c.enabled
    connection.execute(update(webhooks).where(is_meant, webhooks.c.last_line < from_line).values(last_line=from_line))
    connection.execute(update(webhooks).where(is_meant).values(enabled=True, reason=""))


def end_key(connection: Connection, key_name: str, now: float, reason: str) -> None:
    """Turn off the webhooks of a key that ends, for `reason`, a sentence: who had the key may have added them."""
    disable_webhooks(connection, webhooks.c.key_name == key_name, now, f"{reason} {HOW_TO_TURN_ON}")


def describe_key(connection: Connection, key_name: str) -> list[str]:
    """Return what to say of a key that ended or was replaced: its webhooks, which are off; nothing if it has none."""
    own = [f"  {webhook.id}  {webhook.url}" for webhook in list_webhooks(connection) if webhook.key_name == key_name]
    return ["\n".join([KEY_NOTE, *own])] if own else []


def erase_key(connection: Connection, key_name: str, until: float) -> None:
    """Delete the webhooks of a key that were made until then: its program is forgotten."""
    connection.execute(webhooks.delete().where(webhooks.c.key_name == key_name, webhooks.c.created <= until))


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
    connection.execute(deliveries.delete().where(_is_old(now)))
    disable_webhooks(connection, is_bereft(now), now, f"{KEY_ENDED} {HOW_TO_TURN_ON}")
    last_line = read_last_line(connection)
    rows = connection.execute(select(webhooks).where(is_active(now), webhooks.c.last_line < last_line)).mappings().all()
    return sum(_collect_for(connection, row, last_line, now) for row in rows)


def _collect_for(connection: Connection, row: RowMapping, last_line: int, now: float) -> int:
    webhook = to_webhook(row)
    until_line = min(last_line, row["last_line"] + MAX_LINES)
    from_line = max(row["first_line"], row["last_line"] - OVERLAP_LINES)
    states = [state for state, event in STATE_EVENTS.items() if event in webhook.events]
    known = exists().where(deliveries.c.webhook == webhook.id, deliveries.c.line == audit_lines.c.id)
    conditions = [
        audit_lines.c.id > from_line,
        audit_lines.c.id <= until_line,
        audit_lines.c.target.in_(states),
        audit_lines.c.source != audit_lines.c.target,
        ~known,
    ]
    if webhook.key_name:
        conditions.append(jobs.c.member == f"{KEY_MEMBER_PREFIX}{webhook.key_name}")
    query = select(audit_lines).join(jobs, jobs.c.id == audit_lines.c.job).where(*conditions)
    first_try = {"webhook": webhook.id, "state": "waiting", "tries": 0, "due": now, "error": ""}
    events = [
        {name: line[name] for name in ("job", "attempt", "at")}
        | first_try
        | {"line": line["id"], "event": STATE_EVENTS[line["target"]]}
        for line in connection.execute(query).mappings()
    ]
    if events:
        connection.execute(insert(deliveries), events)
    connection.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(last_line=until_line))
    if events and _count_waiting(connection, webhook.id) > MAX_WAITING:
        disable_webhook(connection, webhook.id, now, FULL)
    return len(events)


def _is_old(now: float) -> ColumnElement[bool]:
    return deliveries.c.ended <= now - KEPT_SECONDS


def _count_waiting(connection: Connection, webhook: str) -> int:
    conditions = (deliveries.c.webhook == webhook, deliveries.c.state == "waiting")
    return int(connection.execute(select(func.count()).select_from(deliveries).where(*conditions)).scalar_one())


def list_due(
    connection: Connection, now: float, busy: Sequence[str], limit: int
) -> list[tuple[WebhookDelivery, Webhook]]:
    """Return events that are due, up to `limit` of each webhook, the first due first; none of webhooks in `busy`."""
    query = select(webhooks).where(is_active(now), webhooks.c.id.not_in(busy)).order_by(webhooks.c.id)
    by_id = {row["id"]: to_webhook(row) for row in connection.execute(query).mappings()}
    if not by_id:
        return []
    due_query = union_all(*(_select_due(webhook, now, limit) for webhook in by_id))
    events = [WebhookDelivery(**dict(row)) for row in connection.execute(due_query).mappings()]
    events.sort(key=lambda event: (event.due, event.line, event.webhook))
    return [(event, by_id[event.webhook]) for event in events]


def _select_due(webhook: str, now: float, limit: int) -> Select[Any]:
    """Of one webhook: the index ends the search after `limit` rows, however many wait for this one or another."""
    is_due = (deliveries.c.webhook == webhook) & (deliveries.c.state == "waiting") & (deliveries.c.due <= now)
    return select(
        select(deliveries).where(is_due).order_by(deliveries.c.due, deliveries.c.line).limit(limit).subquery()
    )


def record_delivered(connection: Connection, delivery: WebhookDelivery, now: float) -> None:
    """Record that the endpoint has the event, also if it was given up meanwhile."""
    values = {"state": "delivered", "tries": delivery.tries + 1, "ended": now, "error": ""}
    connection.execute(update(deliveries).where(_is_event(delivery)).values(**values))


def record_failed(
    connection: Connection, delivery: WebhookDelivery, now: float, delay: float | None, error: str
) -> None:
    """Record a try that failed. `delay`: seconds until the next one; None: the event is a dead letter."""
    ending = {"state": "dead", "ended": now} if delay is None else {"due": now + delay}
    values = {"tries": delivery.tries + 1, "error": error} | ending
    connection.execute(update(deliveries).where(_is_event(delivery), deliveries.c.state == "waiting").values(**values))


def list_dead(connection: Connection, webhook: str, limit: int) -> list[WebhookDelivery]:
    """Return the dead letters of a webhook, the newest first."""
    query = select(deliveries).where(deliveries.c.webhook == webhook, deliveries.c.state == "dead")
    rows = connection.execute(query.order_by(deliveries.c.line.desc()).limit(limit)).mappings()
    return [WebhookDelivery(**dict(row)) for row in rows]


def replay(connection: Connection, webhook: str, now: float, *, since: float | None) -> int:
    """Turn a webhook on, and send its dead letters again, or with `since` all its events from then on; return how many.

    The newest are taken, up to half of what may wait: the rest is left for events that come meanwhile.
    """
    enable_webhook(connection, webhook, read_last_line(connection) - MAX_MISSED)
    is_meant = deliveries.c.state == "dead"
    if since is not None:
        is_meant = and_(deliveries.c.state != "waiting", deliveries.c.at >= since)
    room = max(0, MAX_WAITING // 2 - _count_waiting(connection, webhook))
    newest = select(deliveries.c.line).where(deliveries.c.webhook == webhook, is_meant)
    lines = select(newest.order_by(deliveries.c.line.desc()).limit(room).subquery().c.line)
    change = update(deliveries).where(deliveries.c.webhook == webhook, deliveries.c.line.in_(lines))
    return connection.execute(change.values(state="waiting", tries=0, due=now, ended=None)).rowcount


def count_by_state(connection: Connection) -> dict[tuple[str, str], int]:
    """Return how many events of each webhook are in each state."""
    columns = (deliveries.c.webhook, deliveries.c.state)
    query = select(*columns, func.count()).group_by(*columns)
    return {(webhook, state): count for webhook, state, count in connection.execute(query)}


def _is_event(delivery: WebhookDelivery) -> ColumnElement[bool]:
    return and_(deliveries.c.webhook == delivery.webhook, deliveries.c.line == delivery.line)


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
