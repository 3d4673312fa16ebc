"""Rates of the page: each route's action, and the middleware that charges it to its visitor (`bot.policy.limits`).

An API key may have too little scope for the action (`bot.policy.permissions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import web

from bot.domain.errors import UserError
from bot.domain.feature import merge_rows
from bot.domain.permission import Action
from bot.policy.limits import too_often
from bot.policy.permissions import scope_refusal
from bot.web.connections import address_group
from bot.web.middleware import TERMINAL_ID, TOKEN_BUCKETS, VISITOR, Handler
from bot.web.routes import list_routes

UNKNOWN_ROUTE: Action = "page"
# Of a route that knows no visitor, such as /healthz, only the address is charged.
CORE_ROUTE_ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "GET /": "page",
        "POST /api/entrance": "page",
        "POST /api/sign-out": "prefer",
        "POST /api/sign-out/everywhere": "prefer",
        "GET /openapi.json": "page",
        "GET /discord": "page",
        "GET /favicon.ico": "file",
        "GET /static": "file",
        "GET /healthz": "page",
        "GET /metrics": "list",
        "GET /api/rejections": "list",
        "GET /api/workers": "job",
        "GET /api/events": "stream",
        "POST /api/invitations": "prefer",
        "DELETE /api/invitations": "prefer",
        "GET /api/jobs": "list",
        "POST /api/jobs": "imagine",
        "GET /api/jobs/{id}": "job",
        "DELETE /api/jobs/{id}": "cancel",
        "GET /api/jobs/{id}/events": "stream",
        "GET /api/jobs/{id}/wait-reason": "job",
        "POST /api/jobs/{id}/pause": "pause",
        "POST /api/jobs/{id}/resume": "pause",
        "POST /api/jobs/{id}/priority": "pause",
        "POST /api/jobs/{id}/amend": "steer",
        "GET /api/jobs/{id}/amendments": "job",
        "POST /api/jobs/{id}/vary/{n}": "vary",
        "POST /api/jobs/{id}/upscale/{n}": "upscale",
        "POST /api/jobs/{id}/reroll": "reroll",
        "POST /api/jobs/{id}/finish": "finish",
        "POST /api/jobs/{id}/walk": "walk",
        "POST /api/jobs/{id}/edit/{n}": "edit",
        "POST /api/jobs/{id}/zoom/{n}": "zoom",
        "POST /api/jobs/{id}/pan/{n}": "pan",
        "GET /api/jobs/{id}/branch/{n}": "job",
        "POST /api/jobs/{id}/branch/{n}": "branch",
        "GET /api/jobs/{id}/pictures/{n}.png": "file",
        "GET /api/jobs/{id}/pictures/{n}/held.png": "review",
        "POST /api/jobs/{id}/pictures/{n}/show": "approve",
        "POST /api/jobs/{id}/pictures/{n}/hide": "deny",
        "GET /api/jobs/{id}/grid.png": "file",
        "GET /api/jobs/{id}/film.{kind}": "film",
        "GET /api/jobs/{id}/walk.{kind}": "film",
        "GET /api/jobs/{id}/dissolve/{n}.{kind}": "film",
        "GET /api/jobs/{id}/round-trip/{n}.{kind}": "film",
        "GET /api/jobs/{id}/keyframes": "job",
        "GET /api/jobs/{id}/keyframes/{n}.webp": "file",
    }
)
ROUTE_ACTIONS: Mapping[str, Action] = MappingProxyType(
    merge_rows(CORE_ROUTE_ACTIONS, {f"{route.method} {route.address}": route.action for route in list_routes()})
)


@web.middleware
async def limit_address(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Charge the request to its public address, before a visitor is looked up. A proxy speaks for many: it has none."""
    address = address_group(request.remote or "")
    if address and (wait_seconds := request.app[TOKEN_BUCKETS].take(address, "stranger")):
        raise too_often(wait_seconds)
    return await handler(request)


@web.middleware
async def limit_rate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Charge the request's action to its visitor, unless the scopes of its key forbid it. The terminal has no limit."""
    visitor = request.get(VISITOR)
    if visitor is None or visitor.id == TERMINAL_ID:
        return await handler(request)
    action = _action_of(request)
    if reason := scope_refusal(action, visitor.scopes):
        raise UserError(reason, 403)
    if wait_seconds := request.app[TOKEN_BUCKETS].take(visitor.id, action):
        raise too_often(wait_seconds)
    return await handler(request)


def _action_of(request: web.Request) -> Action:
    resource = request.match_info.route.resource
    method = "GET" if request.method == "HEAD" else request.method
    return UNKNOWN_ROUTE if resource is None else ROUTE_ACTIONS.get(f"{method} {resource.canonical}", UNKNOWN_ROUTE)
