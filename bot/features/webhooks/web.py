"""`/api/webhooks`: a program's own webhooks, by its key, and all of them for the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web

from bot.domain.errors import UserError
from bot.features.webhooks.rules import EVENTS, MAX_URL_LENGTH
from bot.features.webhooks.service import Webhooks
from bot.features.webhooks.store import KEPT_SECONDS, Webhook
from bot.policy.permissions import forbidden_reason
from bot.web.middleware import API_KEY, member_of
from bot.web.request_body import read_body
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import SERVICES

PATH = "/api/webhooks"
ONE = f"{PATH}/{{webhook}}"
PARAMETERS = {
    "webhook": {"type": "string", "minLength": 1, "maxLength": 64, "description": "A webhook's id, or the end of it."}
}


class WebhookBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/webhooks`. `key`: whose jobs it follows, for the operator; a key has its own."""

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URL_LENGTH)]
    events: Annotated[list[str], msgspec.Meta(max_length=len(EVENTS))] = []
    key: Annotated[str, msgspec.Meta(max_length=32)] = ""


class ReplayBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/webhooks/{webhook}/replay`, which may be left out: the dead letters alone."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=KEPT_SECONDS)] | None = None


class WebhookAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook. `key`: whose jobs it follows; empty: all jobs. `reason`: why it is off."""

    id: str
    url: str
    key: str
    events: Sequence[str]
    created: float
    enabled: bool
    reason: str


class CountedWebhook(WebhookAnswer, frozen=True, kw_only=True):
    """A webhook, with how many events wait, were delivered and are dead letters."""

    waiting: int
    delivered: int
    dead: int


class NewWebhook(WebhookAnswer, frozen=True, kw_only=True):
    """A webhook, with the secret that its messages are signed with."""

    secret: str


class WebhookList(msgspec.Struct, frozen=True):
    """The webhooks, the oldest first."""

    webhooks: list[CountedWebhook]


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that a webhook did not take. `at`: when it happened. `error`: of the last try."""

    id: str
    event: str
    job: str
    at: float
    tries: int
    error: str


class DeadLetters(msgspec.Struct, frozen=True):
    """The dead letters of a webhook, the newest first."""

    dead: list[DeadLetter]


class WebhookSentence(msgspec.Struct, frozen=True):
    """What happened to a webhook."""

    id: str
    sentence: str


async def list_webhooks(request: web.Request) -> web.Response:
    """Return the webhooks, with how many events wait, were delivered and are dead letters."""
    states = await _webhooks(request).list_all(_require_owner(request))
    counted = [
        CountedWebhook(**_describe(state.webhook), waiting=state.waiting, delivered=state.delivered, dead=state.dead)
        for state in states
    ]
    return answer_json(WebhookList(counted))


async def add_webhook(request: web.Request) -> web.Response:
    """Add a webhook; return it with the secret that its messages are signed with."""
    key_name = _require_owner(request)
    body = await read_body(request, WebhookBody)
    if key_name and body.key not in ("", key_name):
        raise UserError("A key may have webhooks for its own jobs only.", 403)
    webhook = await _webhooks(request).add(body.url, body.events, key_name=key_name or body.key)
    return answer_json(NewWebhook(**_describe(webhook), secret=webhook.secret), status=201)


async def remove_webhook(request: web.Request) -> web.Response:
    """Remove a webhook with all its events."""
    webhook = await _webhooks(request).remove(request.match_info["webhook"], _require_owner(request))
    return answer_json(WebhookSentence(webhook.id, "The webhook is removed."))


async def list_dead_letters(request: web.Request) -> web.Response:
    """Return the events that a webhook did not take, the newest first."""
    letters = await _webhooks(request).list_dead(request.match_info["webhook"], _require_owner(request))
    names = ("id", "event", "job", "at", "tries", "error")
    return answer_json(DeadLetters([DeadLetter(**{name: getattr(each, name) for name in names}) for each in letters]))


async def replay_events(request: web.Request) -> web.Response:
    """Send the dead letters again, or all events of the last `seconds`, and turn the webhook on if it was off."""
    key_name = _require_owner(request)
    body = await read_body(request, ReplayBody) if request.can_read_body else ReplayBody()
    webhook = await _webhooks(request).find(request.match_info["webhook"], key_name)
    count = await _webhooks(request).replay(webhook.id, key_name, seconds=body.seconds)
    return answer_json(WebhookSentence(webhook.id, f"Events that are sent again: {count}."))


ROUTES = (
    Route("GET", PATH, list_webhooks, "webhook", Shape(WebhookList)),
    Route("POST", PATH, add_webhook, "webhook", Shape(NewWebhook, 201, WebhookBody)),
    Route("DELETE", ONE, remove_webhook, "webhook", Shape(WebhookSentence)),
    Route("GET", f"{ONE}/dead", list_dead_letters, "webhook", Shape(DeadLetters)),
    Route("POST", f"{ONE}/replay", replay_events, "webhook", Shape(WebhookSentence, body=ReplayBody, is_optional=True)),
)


def _webhooks(request: web.Request) -> Webhooks:
    return request.app[SERVICES].get(Webhooks)


def _require_owner(request: web.Request) -> str:
    """Return the name of the key that asks; empty for the operator. Refuse everybody else with 403."""
    if reason := forbidden_reason("webhook", member_of(request)):
        raise UserError(reason, 403)
    return request[API_KEY].name if API_KEY in request else ""


def _describe(webhook: Webhook) -> dict[str, Any]:
    names = ("id", "url", "events", "created", "enabled", "reason")
    return {name: getattr(webhook, name) for name in names} | {"key": webhook.key_name}
