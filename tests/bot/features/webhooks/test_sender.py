"""The sender of webhooks: each event once, the next as soon as one ends, and no webhook waits for another's backlog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bot.features.webhooks import service
from bot.features.webhooks import store as stored
from bot.features.webhooks.rules import EVENTS
from bot.features.webhooks.service import WANTS_NO_MORE, WebhookSender
from bot.store import Store
from tests.bot.features.webhooks.deliveries import NOW, Client, add_webhook, admit_job

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    yield client
    await client.close()


async def run_one_round(store: Store, client: Client) -> None:
    async with asyncio.timeout(30), asyncio.TaskGroup() as tries:
        await WebhookSender(store, client, clock=lambda: NOW, jitter=lambda: 0.5).run_round(tries)


async def test_the_next_event_begins_when_one_ends_and_none_is_sent_twice(
    sqlite_store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_WEBHOOK_IN_FLIGHT", 2)
    client.awaited = 2
    await add_webhook(sqlite_store, "a", EVENTS)
    for number in range(4):
        await admit_job(sqlite_store, number)
    await run_one_round(sqlite_store, client)
    assert sorted(client.messages) == ["msg_a_1", "msg_a_2", "msg_a_3", "msg_a_4"]
    assert client.most_at_once == 2
    assert await sqlite_store.query(stored.count_by_state) == {("a", "delivered"): 4}


async def test_a_webhook_with_nothing_in_flight_comes_before_a_backlog(
    sqlite_store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_IN_FLIGHT", 2)
    client.awaited = 2
    await add_webhook(sqlite_store, "a", EVENTS)
    for number in range(3):
        await admit_job(sqlite_store, number)
    await add_webhook(sqlite_store, "b", EVENTS)
    await admit_job(sqlite_store, 3)
    await run_one_round(sqlite_store, client)
    assert sorted(client.messages[:2]) == ["msg_a_1", "msg_b_4"]
    assert sorted(client.messages) == ["msg_a_1", "msg_a_2", "msg_a_3", "msg_a_4", "msg_b_4"]


async def test_a_410_turns_the_webhook_off_and_what_waits_becomes_dead_letters(
    sqlite_store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_WEBHOOK_IN_FLIGHT", 1)
    client.status = 410
    webhook = await add_webhook(sqlite_store, "a", EVENTS)
    for number in range(2):
        await admit_job(sqlite_store, number)
    await run_one_round(sqlite_store, client)
    assert client.messages == ["msg_a_1"]
    (row,) = await sqlite_store.query(stored.list_webhooks)
    assert (row.enabled, row.reason) == (False, WANTS_NO_MORE)
    letters = await sqlite_store.query(stored.list_dead, webhook.id, 10)
    assert [(one.tries, one.error) for one in letters] == [(0, WANTS_NO_MORE), (1, "It answered 410.")]
