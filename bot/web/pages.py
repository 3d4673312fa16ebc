"""The HTML pages: the chatroom, how to add the bot to a server, the sign-in by a one-time address, and the sign-out.

The jobs reach the page by the event stream.
"""

from __future__ import annotations

from typing import Any

import aiohttp_jinja2
import msgspec
from aiohttp import web

from bot.domain.errors import UserError
from bot.domain.feature import PromptSuggester
from bot.web.answers import Notice, Path
from bot.web.auth import COOKIE_NAME
from bot.web.middleware import HOST_POLICY, SESSION, SESSION_TOKENS, SESSIONS, SIGN_IN_PATH, VISITOR, set_session_cookie
from bot.web.request_body import read_body
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import SERVICES

INVITATION_USED = "This address was used already or is not valid. Ask for a new one."
DISCORD_ENABLED = web.AppKey("discord_enabled", bool)
EXAMPLES = (  # chosen by looking: the embedded model draws them well
    "terrier, looking up, cute, white background",
    "ghost, 3d render, black background",
    "fox, cute, white background",
    "{mushroom, sunflower}, blue background --fast",
)
# View channels, send messages (also in threads), embed links, attach files, read the message history
BOT_PERMISSIONS = 1 << 10 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 38


async def get_home(request: web.Request) -> web.StreamResponse:
    """Return the chatroom; with `?token=…` the sign-in page."""
    if "token" in request.query:
        return get_sign_in_page(request)
    suggests_prompts = bool(request.app[SERVICES].list_all(PromptSuggester))
    return _render_page(
        request, "chatroom.html", examples=EXAMPLES, example=EXAMPLES[0], suggests_prompts=suggests_prompts
    )


def get_sign_in_page(request: web.Request) -> web.StreamResponse:
    """Return the page behind a one-time address. It does not use up the token: link previews and HEAD requests come
    here too.

    A known visitor goes on to the chatroom by a page and not by a redirect. Along a redirect from another site's link,
    a browser would not send a SameSite=Strict cookie.
    """
    visitor = request.get(VISITOR)
    token = request.query["token"]
    can_upgrade = request.app[SESSION_TOKENS].would_upgrade(token, visitor)
    if visitor is None and not can_upgrade:
        raise UserError(INVITATION_USED, 403)
    return _render_page(request, "enter.html", known=not can_upgrade)


class SignInBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/entrance`: the token of a one-time address."""

    token: str


async def sign_in(request: web.Request) -> web.StreamResponse:
    """Exchange the one-time token for a session. If the token would not raise the visitor's role, both role and token
    stay.

    This is a POST from our own page: the browser sends the visitor's cookie even if a foreign link led to the page. The
    new session replaces the old one, under the same visitor.
    """
    token = (await read_body(request, SignInBody)).token
    visitor = request.get(VISITOR)
    tokens = request.app[SESSION_TOKENS]
    sessions = request.app[SESSIONS]
    old_session = request.get(SESSION)
    if tokens.would_upgrade(token, visitor):
        response = answer_json(Path("/"), 201)
        new_visitor = tokens.exchange_token(token, old_session.visitor if old_session else "")
        assert new_visitor is not None
        cookie, session = await sessions.start("operator" if new_visitor.is_operator else "guest", new_visitor.id)
        await sessions.end(request.cookies.get(COOKIE_NAME, ""))
        set_session_cookie(request, response, cookie, session)
        return response
    if visitor is None:
        raise UserError(INVITATION_USED, 403)
    return answer_json(Path("/"))


async def sign_out(request: web.Request) -> web.StreamResponse:
    """End the session of this browser."""
    await request.app[SESSIONS].end(request.cookies.get(COOKIE_NAME, ""))
    return _signed_out_response()


async def sign_out_everywhere(request: web.Request) -> web.StreamResponse:
    """End this visitor's sessions; for the operator those in every browser, and addresses that nobody has used."""
    if (session := request.get(SESSION)) is not None:
        await request.app[SESSIONS].end_everywhere(session)
        if session.kind == "operator":
            request.app[SESSION_TOKENS].void_invitations()
    return _signed_out_response()


def _signed_out_response() -> web.Response:
    response = answer_json(Notice("You are signed out."))
    response.del_cookie(COOKIE_NAME, httponly=True, samesite="Strict")
    return response


async def get_discord_page(request: web.Request) -> web.StreamResponse:
    """Return the page on adding the bot to a Discord server."""
    return _render_page(request, "discord.html", permissions=BOT_PERMISSIONS)


async def redirect_icon(request: web.Request) -> web.StreamResponse:
    """Redirect to the icon; browsers request this address by themselves."""
    raise web.HTTPFound("/static/icon.svg")


def _render_page(request: web.Request, template: str, **context: Any) -> web.Response:
    visitor = request.get(VISITOR)
    is_local = request.app[HOST_POLICY].is_local
    is_operator = visitor is not None and visitor.is_operator
    context |= {
        "in_discord": request.app[DISCORD_ENABLED],
        "only_here": is_local,
        "may_invite": not is_local and is_operator,
        "is_operator": is_operator,
        "is_signed_in": SESSION in request and (is_operator or not is_local),
    }
    return aiohttp_jinja2.render_template(template, request, context)


TITLE = "Chatroom"
PAGE = Shape(content=("text/html",))
ROUTES = (
    Route("GET", "/", get_home, "page", PAGE),
    Route("POST", SIGN_IN_PATH, sign_in, "page", Shape(Path, 201, SignInBody)),
    Route("POST", "/api/sign-out", sign_out, "prefer", Shape(Notice)),
    Route("POST", "/api/sign-out/everywhere", sign_out_everywhere, "prefer", Shape(Notice)),
    Route("GET", "/discord", get_discord_page, "page", PAGE),
    Route("GET", "/favicon.ico", redirect_icon, "file", Shape(status=302, content=())),
)
