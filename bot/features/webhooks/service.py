"""Use cases of webhooks: add, list, remove, read the dead letters, replay. `key_name`: of the key that asks, which has
its own webhooks alone; empty: the operator, who has all.
"""

from __future__ import annotations

import base64
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ulid import ULID

from bot.domain.errors import UserError
from bot.domain.feature import RunningFeature
from bot.features.webhooks import store as stored
from bot.features.webhooks.client import WebhookClient
from bot.features.webhooks.rules import DEFAULT_EVENTS, PrivateHosts, check_url, parse_events
from bot.features.webhooks.sender import WebhookPreviews, WebhookSender
from bot.features.webhooks.settings import WebhookSettings
from bot.features.webhooks.store import MAX_KEY_WEBHOOKS, MAX_WEBHOOKS, Webhook, WebhookDelivery
from bot.store import Store
from bot.store.members.api_keys import list_keys

if TYPE_CHECKING:
    from bot.app.wiring import App

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
