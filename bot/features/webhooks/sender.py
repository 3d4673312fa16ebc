"""The task that sends webhooks their events: from the audit into the outbox, from there to the endpoints.

One slow endpoint delays no other: each has a few messages in flight. Their order is not kept, which Standard Webhooks
leaves open; each message says when its event happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from bot.domain.concurrency import run_periodically
from bot.features.webhooks import store as stored
from bot.features.webhooks.client import Answer, WebhookClient
from bot.features.webhooks.payloads import build_event_body
from bot.features.webhooks.rules import GONE, is_accepted, retry_delay
from bot.features.webhooks.store import Webhook, WebhookDelivery
from bot.store import Store
from bot.store.jobs import queries

log = logging.getLogger(__name__)

ROUND_SECONDS = 0.5
MAX_IN_FLIGHT = 24  # messages of all webhooks
MAX_WEBHOOK_IN_FLIGHT = 4
MAX_ERROR = 200  # characters that are stored of an error
WANTS_NO_MORE = "It answered 410: it wants no more. `darkroom webhook replay` turns it on again."


class WebhookSender:
    """Run `run` as a task. `jitter`: returns a number from 0 to 1."""

    def __init__(
        self, store: Store, client: WebhookClient, *, clock: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        self._store = store
        self._client = client
        self._clock = clock
        self._jitter = jitter
        self._in_flight: dict[str, str] = {}  # message → webhook
        self._lock = asyncio.Lock()  # of who looks for events to begin

    async def run(self) -> None:
        """Send events until cancelled. Retry after an outage of the database."""
        async with asyncio.TaskGroup() as tries:
            await run_periodically(partial(self.run_round, tries), ROUND_SECONDS, "webhooks", log)

    async def run_round(self, tries: asyncio.TaskGroup) -> None:
        """Collect new events, and begin to send those that are due."""
        now = self._clock()
        if await self._store.query(stored.needs_collection, now):
            await self._store.write(stored.collect_events, now)
        await self._begin_due(tries)

    async def _begin_due(self, tries: asyncio.TaskGroup) -> None:
        """Begin to send what is due, first for the webhooks with the fewest messages in flight."""
        async with self._lock:
            in_flight = dict(self._in_flight)  # what ends during the query may be in its answer
            counts = Counter(in_flight.values())
            if counts.total() >= MAX_IN_FLIGHT:
                return
            busy = [webhook for webhook, count in counts.items() if count >= MAX_WEBHOOK_IN_FLIGHT]
            due = await self._store.query(stored.list_due, self._clock(), busy, 2 * MAX_WEBHOOK_IN_FLIGHT)
            others = [(delivery, webhook) for delivery, webhook in due if delivery.id not in in_flight]
            for delivery, webhook in self._choose_fairly(others):
                self._in_flight[delivery.id] = webhook.id
                tries.create_task(self._send(delivery, webhook, tries))

    def _choose_fairly(self, due: Sequence[tuple[WebhookDelivery, Webhook]]) -> list[tuple[WebhookDelivery, Webhook]]:
        counts = Counter(self._in_flight.values())
        ranked = list[tuple[int, WebhookDelivery, Webhook]]()
        free_slots = MAX_IN_FLIGHT - counts.total()
        for delivery, webhook in due:
            ranked.append((counts[webhook.id], delivery, webhook))
            counts[webhook.id] += 1
        ranked.sort(key=lambda row: row[0])  # stable: the first due first
        return [(delivery, webhook) for rank, delivery, webhook in ranked[:free_slots] if rank < MAX_WEBHOOK_IN_FLIGHT]

    async def _send(self, delivery: WebhookDelivery, webhook: Webhook, tries: asyncio.TaskGroup) -> None:
        """Send an event once, then begin what may take its place; after an outage the next round does."""
        try:
            await self._try_once(delivery, webhook)
            await self._begin_due(tries)
        except OSError as error:  # an outage of the database: the event is still due
            log.warning("webhook %s: %s", webhook.id, error)

    async def _try_once(self, delivery: WebhookDelivery, webhook: Webhook) -> None:
        try:
            answer = await self._post(delivery, webhook)
            if answer is not None:
                await self._record(delivery, answer)
        finally:
            del self._in_flight[delivery.id]

    async def _post(self, delivery: WebhookDelivery, webhook: Webhook) -> Answer | None:
        """Send an event once; None if its job was deleted meanwhile, and the event with it."""
        record = await self._store.get_job(delivery.job)
        if record is None:
            return None
        is_finished = delivery.event == "job.finished"  # other bodies name no pictures
        pictures = await self._store.query(queries.list_pictures, [record.id]) if is_finished else []
        try:
            body = build_event_body(delivery, record, pictures)
            return await self._client.post(webhook, delivery.id, body, self._clock())
        except Exception:  # of one event: the others go on
            log.exception("webhook %s: %s cannot be sent", webhook.id, delivery.id)
            return Answer(0, "An internal error occurred. The log has the details.")

    async def _record(self, delivery: WebhookDelivery, answer: Answer) -> None:
        now = self._clock()
        if is_accepted(answer.status):
            await self._store.write(stored.record_delivered, delivery, now)
            return
        delay = retry_delay(delivery.tries + 1, self._jitter(), answer.retry_after)
        if answer.status == GONE:
            delay = None
        outcome = "given up" if delay is None else f"again in {delay:.0f} s"
        log.warning("webhook %s: %s: %s %s", delivery.webhook, delivery.id, answer.error, outcome)
        await self._store.write(stored.record_failed, delivery, now, delay, answer.error[:MAX_ERROR])
        if answer.status == GONE:
            await self._store.write(stored.disable_webhook, delivery.webhook, now, WANTS_NO_MORE)
