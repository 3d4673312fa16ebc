"""The task that sends webhooks their events: from the audit into the outbox, from there to the endpoints.

One slow endpoint delays no other: each has a few messages in flight. Their order is not kept, which Standard Webhooks
leaves open; each message says when its event happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from bot.domain.periodic import run_periodically
from bot.policy.webhooks import GONE, is_accepted, retry_delay
from bot.services.webhooks.client import Answer, WebhookClient
from bot.services.webhooks.payloads import build_event_body
from bot.store import Store
from bot.store.jobs import queries
from bot.store.webhooks import endpoints, outbox
from bot.store.webhooks.endpoints import Webhook
from bot.store.webhooks.outbox import WebhookDelivery

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
        self._store, self._client, self._clock, self._jitter = store, client, clock, jitter
        self._in_flight: dict[str, str] = {}  # message → webhook

    async def run(self) -> None:
        """Send events until cancelled. Retry after an outage of the database."""
        async with asyncio.TaskGroup() as tries:
            await run_periodically(partial(self.run_round, tries), ROUND_SECONDS, "webhooks", log)

    async def run_round(self, tries: asyncio.TaskGroup) -> None:
        """Collect new events, and begin to send those that are due."""
        now = self._clock()
        if await self._store.query(outbox.has_new_lines, now):
            await self._store.write(outbox.collect_events, now)
        counts = Counter(self._in_flight.values())
        busy = [webhook for webhook, count in counts.items() if count >= MAX_WEBHOOK_IN_FLIGHT]
        for delivery, webhook in await self._store.query(outbox.list_due, now, busy, 4 * MAX_IN_FLIGHT):
            is_free = counts[webhook.id] < MAX_WEBHOOK_IN_FLIGHT and counts.total() < MAX_IN_FLIGHT
            if is_free and delivery.id not in self._in_flight:
                counts[webhook.id] += 1
                self._in_flight[delivery.id] = webhook.id
                tries.create_task(self._send(delivery, webhook))

    async def _send(self, delivery: WebhookDelivery, webhook: Webhook) -> None:
        try:
            answer = await self._post(delivery, webhook)
            if answer is not None:
                await self._record(delivery, answer)
        except OSError as error:  # an outage of the database: the event is still due
            log.warning("webhook %s: %s", webhook.id, error)
        finally:
            del self._in_flight[delivery.id]

    async def _post(self, delivery: WebhookDelivery, webhook: Webhook) -> Answer | None:
        """Send an event once; None if its job was deleted meanwhile, and the event with it."""
        record = await self._store.get_job(delivery.job)
        if record is None:
            return None
        pictures = await self._store.query(queries.list_pictures, [record.id])
        try:
            body = build_event_body(delivery, record, pictures)
            return await self._client.post(webhook, delivery.id, body, self._clock())
        except Exception:  # of one event: the others go on
            log.exception("webhook %s: %s cannot be sent", webhook.id, delivery.id)
            return Answer(0, "An internal error occurred. The log has the details.")

    async def _record(self, delivery: WebhookDelivery, answer: Answer) -> None:
        now = self._clock()
        if is_accepted(answer.status):
            await self._store.write(outbox.record_delivered, delivery, now)
            return
        delay = retry_delay(delivery.tries + 1, self._jitter(), answer.retry_after)
        if answer.status == GONE:
            await self._store.write(endpoints.disable_webhook, delivery.webhook, WANTS_NO_MORE)
            delay = None
        outcome = "given up" if delay is None else f"again in {delay:.0f} s"
        log.warning("webhook %s: %s: %s %s", delivery.webhook, delivery.id, answer.error, outcome)
        await self._store.write(outbox.record_failed, delivery, now, delay, answer.error[:MAX_ERROR])
