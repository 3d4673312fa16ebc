"""Middleware of the chatroom: checks every request, turns errors into sentences, adds security headers.

The access rules are in `auth`.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable

import aiohttp_jinja2
from aiohttp import web

from bot.refused import Refused
from bot.store import Unavailable
from bot.views import Member
from bot.web.auth import COOKIE, Door, Gate, Visitor

log = logging.getLogger(__name__)

DOOR = web.AppKey("door", Door)
GATE = web.AppKey("gate", Gate)
SECURE = web.AppKey("secure", bool)
SCRAPER = web.AppKey("scraper", str)  # the token for the metrics; empty: none gives access
VISITOR = web.RequestKey("visitor", Visitor)

GUILD = "local"
TERMINAL = "terminal"  # the id of the visitor without a cookie
YEAR = 365 * 24 * 3600
METRICS = "/metrics"
ENTRANCE = "/api/entrance"  # where a one-time token is exchanged
FREE = ("/healthz", "/static/")  # public: nothing secret is behind these
SENTENCES = {
    404: "There is nothing at this address.",
    408: "The request took too long to arrive. Send it again.",
    413: "That is too large: a request may have 64 KiB.",
    503: "The darkroom can't reach its database just now. Nothing was changed; try again in a while.",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Server": "darkroom",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

# aiohttp passes it by the name `handler`
Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def dress(request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers to every response, and forbid caching unless the response allows it."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-cache")


def give_cookie(request: web.Request, response: web.StreamResponse, visitor: Visitor) -> None:
    """Set the visitor's cookie: HttpOnly, SameSite=Strict, and Secure where the public address is https."""
    secure = request.secure or request.app[SECURE]
    value = request.app[GATE].seal(visitor)
    response.set_cookie(COOKIE, value, max_age=YEAR, httponly=True, samesite="Strict", secure=secure)


@web.middleware
async def errors(request: web.Request, handler: Next) -> web.StreamResponse:
    """Turn every refusal and error into one sentence with the right status."""
    try:
        return await handler(request)
    except Refused as refused:
        return said(request, refused.status, refused.sentence)
    except web.HTTPMethodNotAllowed as error:
        methods = ", ".join(sorted(error.allowed_methods))
        answer = said(request, 405, f"{request.method} is not allowed here, only {methods}.")
        answer.headers["Allow"] = methods
        return answer
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = said(request, error.status, SENTENCES.get(error.status, error.reason))
        if error.status == 408:
            answer.force_close()  # the rest of the request may never come
        return answer
    except Unavailable as error:
        log.warning("a request found no database: %s %s: %s", request.method, request.rel_url.raw_path, error)
        return said(request, 503, SENTENCES[503])
    except ConnectionResetError:
        raise
    except Exception:
        log.exception("a request failed: %s %s", request.method, request.rel_url.raw_path)
        return said(request, 500, "Something went wrong here. It is in the log.")


@web.middleware
async def entrance(request: web.Request, handler: Next) -> web.StreamResponse:
    """Check Host and Origin, then identify the visitor. A newcomer to an open room gets a cookie."""
    app = request.app
    app[DOOR].check(request.method, request.headers)
    known = app[GATE].unseal(request.cookies.get(COOKIE, ""))
    visitor = known or _stranger(request)
    if visitor is not None:
        request[VISITOR] = visitor
    elif not (_is_free(request) or _scrapes(request)):
        raise Refused("This room asks for its one-time address: it was printed where it was started.", 403)
    answer = await handler(request)
    if visitor is not None and known is None and visitor.id != TERMINAL:
        give_cookie(request, answer, visitor)
    return answer


def _stranger(request: web.Request) -> Visitor | None:
    """Return the visitor of a request without a cookie: the terminal by its key, or anyone in an open room."""
    gate = request.app[GATE]
    if not request.app[DOOR].open and not gate.is_terminal(request.headers.get("Authorization", "")):
        return None
    return gate.greet(owner=True) if request.path == "/" else Visitor(TERMINAL, owner=True)


def _is_free(request: web.Request) -> bool:
    first = request.path == "/" and "token" in request.query
    return first or request.path == ENTRANCE or request.path.startswith(FREE)


def _scrapes(request: web.Request) -> bool:
    """Return whether the request is for the metrics and carries their token."""
    token, sent = request.app[SCRAPER], request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    return request.path == METRICS and bool(token) and hmac.compare_digest(sent, f"Bearer {token}".encode())


def said(request: web.Request, status: int, sentence: str) -> web.Response:
    """Return one sentence: as JSON under `/api`, else as a page."""
    if request.path.startswith("/api/") or request.path in ("/healthz", METRICS):
        return web.json_response({"error": sentence}, status=status)
    context = {"status": status, "sentence": sentence}
    return aiohttp_jinja2.render_template("sentence.html", request, context, status=status)


def member_of(request: web.Request) -> Member:
    """Return the visitor as a member. Owners are moderators here."""
    visitor = request[VISITOR]
    name = "Terminal" if visitor.id == TERMINAL else f"Visitor {visitor.id[:4]}"
    return Member(id=f"{GUILD}:{visitor.id}", name=name, guild=GUILD, moderator=visitor.owner)
