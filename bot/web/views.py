"""The HTML pages: the chatroom, how to add the bot to a server, and the entrance by a one-time address.

The jobs reach the page by the event stream.
"""

from __future__ import annotations

from typing import Any

import aiohttp_jinja2
import msgspec
from aiohttp import web

from bot.refused import Refused
from bot.web.body import body_of
from bot.web.door import DOOR, ENTRANCE, GATE, VISITOR, give_cookie

USED = "This address was used already, or is not one of this room's. Ask for a new one."
IN_DISCORD = web.AppKey("in_discord", bool)
EXAMPLES = (
    "terrier, looking up, cute, white background",
    "red apple, 3d render, white background",
    "octopus, purple, soft shading, black background",
    "{sun, moon} with a face, flat design --fast",
)
# View channels, send messages (also in threads), embed links, attach files, read the message history
PERMISSIONS = 1 << 10 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 38


def routes() -> list[web.RouteDef]:
    return [
        web.get("/", home),
        web.post(ENTRANCE, come_in),
        web.get("/discord", discord),
        web.get("/favicon.ico", icon),
    ]


async def home(request: web.Request) -> web.StreamResponse:
    """Return the chatroom; with `?token=…` the entrance."""
    if "token" in request.query:
        return threshold(request)
    return _page(request, "room.html", examples=EXAMPLES, example=EXAMPLES[0])


def threshold(request: web.Request) -> web.StreamResponse:
    """Return the page behind a one-time address. It uses nothing up: link previews and HEAD requests come here too.

    A known visitor goes on to the room by a page of ours and not by a redirect. Along a redirect from another site's
    link, a browser would not send a SameSite=Strict cookie.
    """
    visitor, token = request.get(VISITOR), request.query["token"]
    gains = request.app[GATE].gains(token, visitor)
    if visitor is None and not gains:
        raise Refused(USED, 403)
    return _page(request, "enter.html", known=not gains)


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/entrance`: the token of a one-time address."""

    token: str


async def come_in(request: web.Request) -> web.StreamResponse:
    """Exchange the one-time token for a cookie. A visitor who gains nothing by it keeps their role and the token.

    This is a POST from our own page: the visitor's cookie comes along even if a foreign link led to the page.
    """
    token, visitor = (await body_of(request, Invitation)).token, request.get(VISITOR)
    gate = request.app[GATE]
    if gate.gains(token, visitor):
        answer = web.json_response({"path": "/"}, status=201)
        newcomer = gate.redeem(token)
        assert newcomer is not None
        give_cookie(request, answer, newcomer)
        return answer
    if visitor is None:
        raise Refused(USED, 403)
    return web.json_response({"path": "/"})


async def discord(request: web.Request) -> web.StreamResponse:
    """Return the page on adding the bot to a Discord server."""
    return _page(request, "discord.html", permissions=PERMISSIONS)


async def icon(request: web.Request) -> web.StreamResponse:
    """Redirect to the icon; browsers request this address by themselves."""
    raise web.HTTPFound("/static/lamp.svg")


def _page(request: web.Request, template: str, **context: Any) -> web.Response:
    visitor = request.get(VISITOR)
    context |= {
        "in_discord": request.app[IN_DISCORD],
        "only_here": request.app[DOOR].open,
        "may_invite": not request.app[DOOR].open and visitor is not None and visitor.owner,
    }
    return aiohttp_jinja2.render_template(template, request, context)
