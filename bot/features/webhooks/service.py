"""Use cases of webhooks, the tasks that send their events and previews, and the bodies that they send.

Events go from the audit into the outbox, from there to the endpoints. One slow endpoint delays no other: each has a few
messages in flight. Their order is not kept, which Standard Webhooks leaves open; each message says when its event
happened. Previews are best effort: none is stored or sent twice, and one that is still on its way drops the next.

A body is the same at each try of its event. It has no prompt and no picture but previews: who may see a job asks for it
at its address, and the operator does not see private ones.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from cachetools import LRUCache
from ulid import ULID

from bot.domain.concurrency import run_periodically
from bot.domain.errors import UserError
from bot.domain.events import Feed, JobEnded, JobEvent, JobProgress
from bot.domain.feature import RunningFeature
from bot.features.webhooks import store as stored
from bot.features.webhooks.client import Answer, WebhookClient
from bot.features.webhooks.rules import (
    DEFAULT_EVENTS,
    GONE,
    PrivateHosts,
    check_url,
    is_accepted,
    parse_events,
    retry_delay,
)
from bot.features.webhooks.settings import WebhookSettings
from bot.features.webhooks.store import MAX_KEY_WEBHOOKS, MAX_WEBHOOKS, Webhook, WebhookDelivery
from bot.store import JobRecord, Store, StoredPicture
from bot.store.jobs import queries
from bot.store.members.api_keys import KEY_MEMBER_PREFIX, list_keys

if TYPE_CHECKING:
    from bot.app.wiring import App

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
            try:
                answer = await self._post(delivery, webhook)
                if answer is not None:
                    await self._record(delivery, answer)
            finally:
                del self._in_flight[delivery.id]
            await self._begin_due(tries)
        except OSError as error:  # an outage of the database: the event is still due
            log.warning("webhook %s: %s", webhook.id, error)

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


LOOK_SECONDS = 2.0  # seconds between two looks for webhooks that want previews
PREVIEW_SECONDS = 2.0  # seconds between two previews of one job
MAX_JOBS = 4096  # jobs whose author is remembered


class WebhookPreviews:
    """Run `run` as a task."""

    def __init__(self, store: Store, feed: Feed, client: WebhookClient, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._feed = feed
        self._client = client
        self._clock = clock
        self._webhooks: list[Webhook] = []  # that want previews
        self._records: LRUCache[str, JobRecord] = LRUCache(MAX_JOBS)  # as they were when we first read them
        self._watched: set[str] = set()  # jobs whose frames we have asked for
        self._sent_at: dict[str, float] = {}  # by job
        self._in_flight: set[str] = set()  # webhooks

    async def run(self) -> None:
        """Send previews until cancelled, while a webhook wants any."""
        async with asyncio.TaskGroup() as posts:
            while True:
                if await self._has_webhooks():
                    await self._follow_feed(posts)
                await asyncio.sleep(LOOK_SECONDS)

    async def _has_webhooks(self) -> bool:
        try:
            active = await self._store.query(stored.list_active_webhooks, self._clock())
        except OSError:  # an outage: previews can wait
            return False
        self._webhooks = [webhook for webhook in active if "job.preview" in webhook.events]
        return bool(self._webhooks)

    async def _follow_feed(self, posts: asyncio.TaskGroup) -> None:
        """Send previews until no webhook wants any, or the feed closes."""
        try:
            async with self._feed.subscribe(with_previews=False) as events:
                looked_at = self._clock()
                async for event in events:
                    if self._clock() - looked_at >= LOOK_SECONDS:
                        if not await self._has_webhooks():
                            return
                        looked_at = self._clock()
                    await self._handle(event, posts)
        finally:
            for job in list(self._watched):
                self._forget(job)

    async def _handle(self, event: JobEvent, posts: asyncio.TaskGroup) -> None:
        if isinstance(event, JobEnded):
            self._forget(event.job)
        elif isinstance(event, JobProgress):
            record = await self._read_record(event.job)
            now = self._clock()
            # of a private job, only its author's
            readers = [] if record is None else [each for each in self._webhooks if may_preview(each, record)]
            if readers and event.job not in self._watched:
                self._watched.add(event.job)
                self._feed.watch(event.job)
            is_due = now - self._sent_at.get(event.job, 0.0) >= PREVIEW_SECONDS
            if record is not None and readers and event.frames and is_due:
                self._sent_at[event.job] = now
                body = build_preview_body(record, event, now)
                for webhook in readers:
                    if webhook.id not in self._in_flight:
                        self._in_flight.add(webhook.id)
                        posts.create_task(self._post(webhook, body))

    async def _read_record(self, job: str) -> JobRecord | None:
        record = self._records.get(job)
        if record is None:
            try:
                record = await self._store.get_job(job)
            except OSError:  # an outage: this preview is lost
                return None
            if record is not None:
                self._records[job] = record
        return record

    def _forget(self, job: str) -> None:
        self._sent_at.pop(job, None)
        self._records.pop(job, None)
        if job in self._watched:
            self._watched.remove(job)
            self._feed.unwatch(job)

    async def _post(self, webhook: Webhook, body: bytes) -> None:
        try:
            answer = await self._client.post(webhook, f"msg_{ULID()}", body, self._clock())
            log.debug("webhook %s: a preview: %d %s", webhook.id, answer.status, answer.error)
        finally:
            self._in_flight.discard(webhook.id)


def may_preview(webhook: Webhook, record: JobRecord) -> bool:
    """Return whether a webhook may have a job's previews: a key of its own, the operator of all but private ones."""
    if webhook.key_name:
        return record.member == f"{KEY_MEMBER_PREFIX}{webhook.key_name}"
    return not record.private and not record.thread


def build_event_body(delivery: WebhookDelivery, record: JobRecord, pictures: Sequence[StoredPicture]) -> bytes:
    """Return the body of an event in the outbox. `pictures`: of the job; inputs and ladders among them are left out."""
    data = _describe_job(record) | {"attempt": delivery.attempt}
    if delivery.event in ("job.finished", "job.failed", "job.cancelled"):
        data |= {"ended": record.ended, "seconds": record.seconds, "reason": record.reason}
    if delivery.event == "job.finished":
        images = sorted((picture for picture in pictures if picture.kind == "image"), key=lambda picture: picture.image)
        data["pictures"] = [
            {
                "n": picture.image + 1,
                "url": f"/api/jobs/{picture.job}/pictures/{picture.image + 1}.png",
                "width": picture.width,
                "height": picture.height,
            }
            for picture in images
        ]
    return _encode(delivery.event, delivery.at, data)


def build_preview_body(record: JobRecord, progress: JobProgress, now: float) -> bytes:
    """Return the body of a preview: its newest frames, as JPEG in base64."""
    frames = [
        {"n": image + 1, "content_type": "image/jpeg", "base64": base64.b64encode(frame).decode()}
        for image, frame in sorted(progress.frames.items())
    ]
    data = _describe_job(record) | {"step": progress.step, "total_steps": progress.total_steps, "previews": frames}
    return _encode("job.preview", now, data)


def _describe_job(record: JobRecord) -> dict[str, Any]:
    names = ("action", "member", "guild", "created")
    return {"id": record.id, "url": f"/api/jobs/{record.id}"} | {name: getattr(record, name) for name in names}


def _encode(event: str, at: float, data: Mapping[str, Any]) -> bytes:
    timestamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode({"type": event, "timestamp": timestamp, "data": data})


SECRET_BYTES = 32
MAX_DEAD = 200  # dead letters that are listed
TOO_MANY = f"There are too many webhooks: a key may have {MAX_KEY_WEBHOOKS}, all together {MAX_WEBHOOKS}."


@dataclass(frozen=True)
class WebhookState:
    """A webhook, and how many of its events wait, were delivered in the last days, or are dead letters."""

    webhook: Webhook
    waiting: int
    delivered: int
    dead: int


class Webhooks:
    """Adds, lists, removes and replays webhooks. `private_hosts`: what the operator lists."""

    def __init__(self, store: Store, private_hosts: PrivateHosts, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._private_hosts = private_hosts
        self._clock = clock

    async def add(self, url: str, events: Collection[str] = (), *, key_name: str = "") -> Webhook:
        """Add a webhook; events are sent from now on. Return it with its secret. Raises `UserError`."""
        event_names = parse_events(events) if events else DEFAULT_EVENTS
        check_url(url, self._private_hosts)
        now = self._clock()
        await self._check_key(key_name, now)
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        webhook = Webhook(str(ULID()), url, key_name, event_names, secret, now)
        if not await self._store.write(stored.insert_webhook, webhook):
            raise UserError(TOO_MANY)
        return webhook

    async def list_all(self, key_name: str = "") -> list[WebhookState]:
        """Return the webhooks, the oldest first."""
        counts = await self._store.query(stored.count_by_state)
        return [
            WebhookState(webhook, *(counts.get((webhook.id, state), 0) for state in ("waiting", "delivered", "dead")))
            for webhook in await self._store.query(stored.list_webhooks)
            if key_name in ("", webhook.key_name)
        ]

    async def remove(self, suffix: str, key_name: str = "") -> Webhook:
        """Remove a webhook with all its events. Raises `UserError` (404)."""
        webhook = await self.find(suffix, key_name)
        await self._store.write(stored.delete_webhook, webhook.id)
        return webhook

    async def list_dead(self, suffix: str, key_name: str = "") -> list[WebhookDelivery]:
        """Return the dead letters of a webhook, the newest first. Raises `UserError` (404)."""
        webhook = await self.find(suffix, key_name)
        return await self._store.query(stored.list_dead, webhook.id, MAX_DEAD)

    async def replay(self, suffix: str, key_name: str = "", *, seconds: float | None = None) -> int:
        """Send a webhook's dead letters again, or all its events of the last so many seconds, and turn it on.

        Return how many there are. Raises `UserError` (404), also while its key is not valid.
        """
        webhook = await self.find(suffix, key_name)
        now = self._clock()
        await self._check_key(webhook.key_name, now)
        since = None if seconds is None else now - seconds
        return await self._store.write(stored.replay, webhook.id, now, since=since)

    async def find(self, suffix: str, key_name: str = "") -> Webhook:
        """Return the webhook whose id ends so. Raises `UserError` (404) if there is none, or more than one."""
        webhooks = [each for each in await self._store.query(stored.list_webhooks) if key_name in ("", each.key_name)]
        matches = [webhook for webhook in webhooks if suffix and webhook.id.lower().endswith(suffix.lower())]
        if len(matches) != 1:
            raise UserError(f"There is {'no' if not matches else 'more than one'} webhook {suffix[:40]!r}.", 404)
        return matches[0]

    async def _check_key(self, name: str, now: float) -> None:
        """Raise `UserError` (404) for the name of a key that is not valid; an empty one is of no key."""
        if name and not any(key.name == name and key.is_valid(now) for key in await self._store.query(list_keys)):
            raise UserError(f"There is no valid key {name[:40]!r}: `darkroom api-key --list`.", 404)


@asynccontextmanager
async def open_service(app: App) -> AsyncGenerator[RunningFeature]:
    """Open the webhooks over the application, with the tasks that send events and previews."""
    core = app.core
    private_hosts = PrivateHosts.parse(core.settings.of(WebhookSettings).hosts)
    client = WebhookClient(private_hosts)
    sender = WebhookSender(core.store, client, clock=core.clock, jitter=random.random)
    previews = WebhookPreviews(core.store, core.feed, client, clock=core.clock)
    try:
        yield RunningFeature(
            Webhooks(core.store, private_hosts, clock=core.clock),
            {"webhooks": sender.run, "webhook-previews": previews.run},
        )
    finally:
        await client.close()
