"""`/api/webhooks`: a program's own webhooks, by its key, and all of them for the operator."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from bot.domain.errors import UserError
from bot.policy.permissions import forbidden_reason
from bot.policy.webhooks import EVENTS, MAX_URL_LENGTH
from bot.services.webhooks.admin import Webhooks
from bot.store.webhooks.endpoints import Webhook
from bot.store.webhooks.outbox import KEPT_SECONDS, WebhookDelivery
from bot.web.middleware import API_KEY, member_of
from bot.web.request_body import read_body

WEBHOOKS = web.AppKey("webhooks", Webhooks)
PATH = "/api/webhooks"


class WebhookBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/webhooks`. `key`: whose jobs it follows, for the operator; a key has its own."""

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URL_LENGTH)]
    events: Annotated[list[str], msgspec.Meta(max_length=len(EVENTS))] = []
    key: Annotated[str, msgspec.Meta(max_length=32)] = ""


class ReplayBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/webhooks/{webhook}/replay`, which may be left out: the dead letters alone."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=KEPT_SECONDS)] | None = None


def routes() -> list[web.RouteDef]:
    one = f"{PATH}/{{webhook}}"
    return [
        web.get(PATH, list_webhooks),
        web.post(PATH, add_webhook),
        web.delete(one, remove_webhook),
        web.get(f"{one}/dead", list_dead_letters),
        web.post(f"{one}/replay", replay_events),
    ]


async def list_webhooks(request: web.Request) -> web.Response:
    """Return the webhooks, with how many events wait, were delivered and are dead letters."""
    states = await request.app[WEBHOOKS].list_all(_require_owner(request))
    counted = [
        _describe(state.webhook) | {"waiting": state.waiting, "delivered": state.delivered, "dead": state.dead}
        for state in states
    ]
    return web.json_response({"webhooks": counted})


async def add_webhook(request: web.Request) -> web.Response:
    """Add a webhook; return it with the secret that its messages are signed with."""
    key_name, body = _require_owner(request), await read_body(request, WebhookBody)
    if key_name and body.key not in ("", key_name):
        raise UserError("A key may have webhooks for its own jobs only.", 403)
    webhook = await request.app[WEBHOOKS].add(body.url, body.events, key_name=key_name or body.key)
    return web.json_response(_describe(webhook) | {"secret": webhook.secret}, status=201)


async def remove_webhook(request: web.Request) -> web.Response:
    """Remove a webhook with all its events."""
    webhook = await request.app[WEBHOOKS].remove(request.match_info["webhook"], _require_owner(request))
    return web.json_response({"id": webhook.id, "sentence": "The webhook is removed."})


async def list_dead_letters(request: web.Request) -> web.Response:
    """Return the events that a webhook did not take, the newest first."""
    letters = await request.app[WEBHOOKS].list_dead(request.match_info["webhook"], _require_owner(request))
    return web.json_response({"dead": [_describe_letter(letter) for letter in letters]})


async def replay_events(request: web.Request) -> web.Response:
    """Send the dead letters again, or all events of the last `seconds`, and turn the webhook on if it was off."""
    key_name = _require_owner(request)
    body = await read_body(request, ReplayBody) if request.can_read_body else ReplayBody()
    webhook = await request.app[WEBHOOKS].find(request.match_info["webhook"], key_name)
    count = await request.app[WEBHOOKS].replay(webhook.id, key_name, seconds=body.seconds)
    return web.json_response({"id": webhook.id, "sentence": f"Events that are sent again: {count}."})


def _require_owner(request: web.Request) -> str:
    """Return the name of the key that asks; empty for the operator. Refuse everybody else with 403."""
    if reason := forbidden_reason("webhook", member_of(request)):
        raise UserError(reason, 403)
    return request[API_KEY].name if API_KEY in request else ""


def _describe(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id, "url": webhook.url, "key": webhook.key_name, "events": list(webhook.events),
        "created": webhook.created, "enabled": webhook.enabled, "reason": webhook.reason,
    }  # fmt: skip


def _describe_letter(letter: WebhookDelivery) -> dict[str, Any]:
    return {
        "id": letter.id, "event": letter.event, "job": letter.job, "at": letter.at, "tries": letter.tries,
        "error": letter.error,
    }  # fmt: skip
