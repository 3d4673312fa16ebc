"""Previews for webhooks: only jobs that somebody reads cost work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bot.domain.events import Feed, JobProgress
from bot.features.webhooks import service
from bot.features.webhooks.rules import EVENTS
from bot.features.webhooks.service import WebhookPreviews, build_preview_body
from bot.store import JobRecord, Store
from bot.store.members import api_keys
from bot.store.members.api_keys import ApiKey
from tests.bot.features.webhooks.deliveries import IDS, NOW, Client, add_webhook, admit_job

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    yield client
    await client.close()


async def test_a_job_that_no_webhook_reads_is_not_encoded(
    sqlite_store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = list[str]()

    def record_body(record: JobRecord, progress: JobProgress, now: float) -> bytes:
        encoded.append(record.id)
        return build_preview_body(record, progress, now)

    monkeypatch.setattr(service, "build_preview_body", record_body)
    key = ApiKey("webui", frozenset({"imagine"}), 1.0)
    await sqlite_store.write(api_keys.insert_key, "0" * 64, key)
    await add_webhook(sqlite_store, "a", EVENTS, key="webui")
    await admit_job(sqlite_store, 0)
    await admit_job(sqlite_store, 1, key.member)
    feed = Feed()
    for job in IDS[:2]:
        feed.publish(JobProgress(job, 1, 9, 1.0, {0: b"jpeg"}))
    task = asyncio.create_task(WebhookPreviews(sqlite_store, feed, client, clock=lambda: NOW).run())
    try:
        async with asyncio.timeout(30):
            while not client.messages:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert encoded == [IDS[1]]
