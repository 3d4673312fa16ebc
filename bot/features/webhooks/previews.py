"""Previews for webhooks: best effort. None is stored or sent twice, and one that is still on its way drops the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cachetools import LRUCache
from ulid import ULID

from bot.domain.events import Feed, JobEnded, JobEvent, JobProgress
from bot.features.webhooks import store as stored
from bot.features.webhooks.client import WebhookClient
from bot.features.webhooks.payloads import build_preview_body
from bot.features.webhooks.store import Webhook
from bot.store import JobRecord, Store
from bot.store.members.api_keys import KEY_MEMBER_PREFIX

log = logging.getLogger(__name__)

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
            readers = [] if record is None else self._list_readers(record)
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

    def _list_readers(self, record: JobRecord) -> list[Webhook]:
        """Return the webhooks that may have previews of the job: of a private one, only its author's."""
        return [webhook for webhook in self._webhooks if may_preview(webhook, record)]

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
