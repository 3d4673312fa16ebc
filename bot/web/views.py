"""The pages: the chatroom itself, how to put the bot into a server, and the way in by a one-time address.

Knows templates and what they are filled with; the jobs on the page come by the event stream.
"""

from __future__ import annotations

from typing import Any

import aiohttp_jinja2
from aiohttp import web

from bot.refused import Refused
from bot.web.door import DOOR, GATE, VISITOR, give_cookie

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
    """The addresses of the pages."""
    return [web.get("/", home), web.get("/discord", discord), web.get("/favicon.ico", icon)]


async def home(request: web.Request) -> web.StreamResponse:
    """The chatroom; with `?token=…` the way in."""
    if "token" in request.query:
        return enter(request)
    return _page(request, "room.html", examples=EXAMPLES, example=EXAMPLES[0])


def enter(request: web.Request) -> web.StreamResponse:
    """Exchanges the one-time token for a cookie.

    Answers with a page of ours that goes on to the room, not with a redirect: after a link in another site's page a
    browser would not send a SameSite=Strict cookie along the redirect.
    """
    visitor = request.app[GATE].redeem(request.query["token"])
    if visitor is None and request.get(VISITOR) is None:
        raise Refused("This address was used already, or is not one of this room's. Ask for a new one.", 403)
    answer = _page(request, "enter.html")
    if visitor is not None:
        give_cookie(request, answer, visitor)
    return answer


async def discord(request: web.Request) -> web.StreamResponse:
    """How to put the bot into a Discord server."""
    return _page(request, "discord.html", permissions=PERMISSIONS)


async def icon(request: web.Request) -> web.StreamResponse:
    """Browsers ask for this unasked."""
    raise web.HTTPFound("/static/lamp.svg")


def _page(request: web.Request, template: str, **context: Any) -> web.Response:
    visitor = request.get(VISITOR)
    context |= {
        "in_discord": request.app[IN_DISCORD],
        "only_here": request.app[DOOR].open,
        "may_invite": not request.app[DOOR].open and visitor is not None and visitor.owner,
    }
    return aiohttp_jinja2.render_template(template, request, context)
