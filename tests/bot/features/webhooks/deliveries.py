"""Webhooks and jobs in a store, and a client that records what is sent to whom."""

from __future__ import annotations

import asyncio

from bot.domain.dto import Destination, Member
from bot.features.webhooks import store as stored
from bot.features.webhooks.client import Answer, WebhookClient
from bot.features.webhooks.rules import DEFAULT_EVENTS, PrivateHosts, WebhookEvent
from bot.features.webhooks.store import Webhook
from bot.store import NewJob, Store
from shared.sample_views import make_recipe

IDS = [f"01JZ000000000000000000000{number}" for number in range(4)]


NOW = 200.0


async def admit_job(store: Store, number: int, member: str = "local:ann") -> None:
    new_job = NewJob(
        IDS[number],
        "imagine",
        "a lamp",
        (),
        make_recipe(),
        Member(member, "Ann", "local"),
        Destination("web", {}),
        "default",
        "embedded",
        8.0,
        100.0 + number,
        9000.0,
    )
    await store.admit_jobs([new_job], None, lambda new_jobs, _ledger: new_jobs, 100.0 + number)


async def add_webhook(
    store: Store, name: str, events: tuple[WebhookEvent, ...] = DEFAULT_EVENTS, key: str = ""
) -> Webhook:
    webhook = Webhook(name, "https://hooks.example/", key, events, "whsec_AAAA", 1.0)
    assert await store.write(stored.insert_webhook, webhook)
    return webhook


class Client(WebhookClient):
    """Answers with `status` once so many messages as `awaited` have come, and keeps what was sent."""

    def __init__(self) -> None:
        super().__init__(PrivateHosts())
        self.status = 204
        self.messages = list[str]()
        self.awaited = 1
        self.most_at_once = 0
        self._at_once = 0

    async def post(self, webhook: Webhook, message: str, body: bytes, now: float) -> Answer:
        self.messages.append(message)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        while len(self.messages) < self.awaited:
            await asyncio.sleep(0)
        self._at_once -= 1
        return Answer(self.status, f"It answered {self.status}.")
