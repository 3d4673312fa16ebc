"""Middleware of the chatroom: checks every request and charges it to its visitor, turns errors into sentences,
adds security headers.

The access rules are in `bot.web.auth`.
"""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import aiohttp_jinja2
from aiohttp import HttpVersion11, web

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.permission import Action
from bot.policy.limits import TokenBuckets, too_often
from bot.policy.permissions import scope_refusal
from bot.services.api_keys import PREFIX, ApiKeys
from bot.services.sessions import DAY_SECONDS, SESSION_DAYS, Sessions
from bot.store import DatabaseUnavailable
from bot.store.members.api_keys import ApiKey
from bot.store.members.sessions import VisitorSession
from bot.web.auth import COOKIE_NAME, HostPolicy, SessionTokens, Visitor, new_visitor_id, parse_credentials
from bot.web.connections import address_group

log = logging.getLogger(__name__)

HOST_POLICY = web.AppKey("host_policy", HostPolicy)
SESSION_TOKENS = web.AppKey("session_tokens", SessionTokens)
SESSIONS = web.AppKey("sessions", Sessions)
API_KEYS = web.AppKey("api_keys", ApiKeys)
TOKEN_BUCKETS = web.AppKey("token_buckets", TokenBuckets)
SECURE_COOKIE = web.AppKey("secure_cookie", bool)
METRICS_TOKEN = web.AppKey("metrics_token", str)  # the token for the metrics; empty: no token gives access
VISITOR = web.RequestKey("visitor", Visitor)
SESSION = web.RequestKey("session", VisitorSession)  # of the request's cookie
API_KEY = web.RequestKey("api_key", ApiKey)  # of the request's Authorization

GUILD = "local"
TERMINAL_ID = "terminal"  # the id of the visitor with the terminal's key
ANYBODY = Visitor("anybody", is_operator=False)  # an open chatroom's visitor without a cookie, such as a program
METRICS_PATH = "/metrics"
SIGN_IN_PATH = "/api/entrance"  # where a one-time token is exchanged
PUBLIC_PATHS = ("/healthz", "/static/")  # public: nothing secret is behind these
SIGN_IN = "Sign in with the one-time address that `darkroom up` printed; `darkroom visitors invite` prints a new one."
SIGNED_OUT = f"This browser is not signed in any more. {SIGN_IN}"
INVALID_KEY = "This key is not valid: it is mistyped, expired or revoked. `darkroom api-key NAME` makes a new one."
STATUS_SENTENCES = {
    404: "There is nothing at this address.",
    408: "The request took too long to arrive. Send it again.",
    413: "The request is too large: the limit is 64 KiB.",
    503: "Darkroom cannot reach its database. Nothing was changed; try again later.",
}
SECURITY_HEADERS = {
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


class NotSignedIn(UserError):
    """The request carries nothing that identifies its visitor."""


@dataclass(frozen=True)
class Refusal:
    """A request that gets an error. `sentence` is for people; `cause` is what was raised, perhaps with more to tell.

    `retry_after`: seconds, if known. `is_stranger`: the request carries nothing that identifies its visitor.
    """

    status: int
    sentence: str
    cause: Exception
    retry_after: int | None = None
    is_stranger: bool = False


ErrorShape = Callable[[Refusal], web.Response]
# how the errors of other programs' APIs look, by the beginning of the path, such as `/v1/`
ERROR_SHAPES = web.AppKey("error_shapes", Mapping[str, ErrorShape])
# beginnings of addresses that need no visitor, since they are signed
PUBLIC_PREFIXES = web.AppKey("public_prefixes", tuple[str, ...])
# what each route is charged by, such as `GET /api/jobs/{id}`
ROUTE_ACTIONS = web.AppKey("route_actions", Mapping[str, Action])
UNKNOWN_ROUTE: Action = "page"
NO_SHAPES: Mapping[str, ErrorShape] = MappingProxyType({})

# aiohttp passes it by the name `handler`
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def add_security_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers to every response, and forbid caching unless the response allows it."""
    for name, value in security_headers(request.app).items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-cache")


def security_headers(app: web.Application) -> dict[str, str]:
    """Return the headers of every response. Behind an address of https, browsers shall use no other for a year."""
    https_only = {"Strict-Transport-Security": f"max-age={365 * DAY_SECONDS}"} if app[SECURE_COOKIE] else {}
    return SECURITY_HEADERS | https_only


def set_session_cookie(
    request: web.Request, response: web.StreamResponse, cookie: str, session: VisitorSession
) -> None:
    """Set the session's cookie: HttpOnly, SameSite=Strict, and Secure where the public address is https."""
    secure = request.secure or request.app[SECURE_COOKIE]
    max_age = SESSION_DAYS[session.kind] * DAY_SECONDS
    response.set_cookie(COOKIE_NAME, cookie, max_age=max_age, httponly=True, samesite="Strict", secure=secure)


@web.middleware
async def handle_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every refusal and error into one sentence with the right status."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _answer_http_error(request, error)
    except UserError as error:
        wait_seconds = None if error.retry_at is None else max(1, math.ceil(error.retry_at - time.time()))
        is_stranger = isinstance(error, NotSignedIn)
        response = error_response(request, Refusal(error.status, error.sentence, error, wait_seconds, is_stranger))
        if error.status == 401:
            response.headers.setdefault("WWW-Authenticate", 'Bearer realm="darkroom"')
        if error.status == 429 and wait_seconds is not None:
            response.headers["Retry-After"] = str(wait_seconds)
        return response
    except DatabaseUnavailable as error:
        log.warning("a request found no database: %s %s: %s", request.method, request.rel_url.raw_path, error)
        return error_response(request, Refusal(503, STATUS_SENTENCES[503], error))
    except ConnectionResetError:
        raise
    except Exception as error:
        log.exception("a request failed: %s %s", request.method, request.rel_url.raw_path)
        return error_response(request, Refusal(500, "An internal error occurred. The log has the details.", error))


def _answer_http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        methods = ", ".join(sorted(error.allowed_methods))
        sentence = f"{request.method} is not allowed here, only {methods}."
        response = error_response(request, Refusal(405, sentence, error))
        response.headers["Allow"] = methods
        return response
    sentence = STATUS_SENTENCES.get(error.status, error.reason)
    response = error_response(request, Refusal(error.status, sentence, error))
    if error.status == 408:
        response.force_close()  # the rest of the request may never arrive
    return response


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check Host and Origin, then identify the visitor. A new visitor to an open chatroom gets a session."""
    app = request.app
    is_http_1_0 = request.version < HttpVersion11
    app[HOST_POLICY].check_request(request.method, request.headers, is_http_1_0=is_http_1_0)
    if request.path.startswith(PUBLIC_PATHS):
        return await handler(request)
    cookie = request.cookies.get(COOKIE_NAME, "")
    authorization = request.headers.get("Authorization", "")
    if parse_credentials(authorization).startswith(PREFIX):
        await _identify_program(request)
    elif (session := await find_session(request)) is not None:
        request[SESSION] = session
        request[VISITOR] = Visitor(session.visitor, session.kind == "operator")
    elif app[SESSION_TOKENS].is_terminal_key(authorization):
        request[VISITOR] = Visitor(TERMINAL_ID, is_operator=True)
    elif app[HOST_POLICY].is_local:
        return await _answer_anybody(request, handler)
    elif not (_is_public(request) or _is_scrape(request)):
        if authorization:
            raise _invalid_key(request)
        raise NotSignedIn(SIGNED_OUT if cookie else SIGN_IN, 403)
    return await handler(request)


async def _identify_program(request: web.Request) -> None:
    """Make the API key of the request its visitor. Raises `UserError` (401, or 429 after too many guesses)."""
    key = await find_api_key(request)
    if key is None:
        raise _invalid_key(request)
    request[API_KEY] = key
    request[VISITOR] = Visitor(key.visitor, is_operator=False, name=key.name, scopes=key.scopes)


async def find_api_key(request: web.Request) -> ApiKey | None:
    """Return the API key that the request carries; None if it carries none, or one that is not valid any more."""
    return await request.app[API_KEYS].find(parse_credentials(request.headers.get("Authorization", "")))


def _invalid_key(request: web.Request) -> UserError:
    """Charge a guess to the request's address; return the refusal."""
    remote = request.remote or ""
    wait_seconds = request.app[TOKEN_BUCKETS].take(address_group(remote) or remote, "guess")
    return too_often(wait_seconds) if wait_seconds else UserError(INVALID_KEY, 401)


async def find_session(request: web.Request) -> VisitorSession | None:
    """Return the session of the request's cookie. One of an open chatroom counts only while the chatroom is open."""
    session = await request.app[SESSIONS].find(request.cookies.get(COOKIE_NAME, ""))
    return None if session and session.kind == "open" and not request.app[HOST_POLICY].is_local else session


async def is_signed_out(request: web.Request) -> bool:
    """Return whether the session or the key that the request came with has ended since."""
    has_session_ended = SESSION in request and await find_session(request) is None
    return has_session_ended or (API_KEY in request and await find_api_key(request) is None)


def signed_out_error(request: web.Request) -> UserError:
    """Return the refusal of a request whose session or key has ended since it came."""
    return UserError(INVALID_KEY, 401) if API_KEY in request else NotSignedIn(SIGNED_OUT, 403)


async def _answer_anybody(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a stranger in an open chatroom. A browser gets a session with its first page; none makes an operator.

    After a link on another site, a browser sends no cookie: a new session would replace the one that it has.
    """
    request[VISITOR] = ANYBODY
    is_first_page = request.method == "GET" and request.path == "/" and "token" not in request.query
    if not is_first_page or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return await handler(request)
    cookie, session = await request.app[SESSIONS].start("open", new_visitor_id())
    request[SESSION] = session
    request[VISITOR] = Visitor(session.visitor, is_operator=False)
    response = await handler(request)
    set_session_cookie(request, response, cookie, session)
    return response


def _is_public(request: web.Request) -> bool:
    has_token = request.path == "/" and "token" in request.query
    return has_token or request.path == SIGN_IN_PATH or request.path.startswith(request.app[PUBLIC_PREFIXES])


def _is_scrape(request: web.Request) -> bool:
    """Return whether the request is for the metrics and carries their token."""
    token = request.app[METRICS_TOKEN]
    header = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    return request.path == METRICS_PATH and bool(token) and hmac.compare_digest(header, f"Bearer {token}".encode())


def error_response(request: web.Request, refusal: Refusal) -> web.Response:
    """Return one sentence: as another program's API has it, as JSON under `/api`, else as a page."""
    status = refusal.status
    sentence = refusal.sentence
    for prefix, shape_error in request.app.get(ERROR_SHAPES, NO_SHAPES).items():
        if request.path.startswith(prefix):
            return shape_error(refusal)
    if request.path.startswith("/api/") or request.path in ("/healthz", METRICS_PATH):
        return web.json_response({"error": sentence}, status=status)
    context = {"status": status, "sentence": sentence}
    return aiohttp_jinja2.render_template("sentence.html", request, context, status=status)


def member_of(request: web.Request) -> Member:
    """Return the visitor as a member. The operator is a moderator here."""
    visitor = request[VISITOR]
    names = {TERMINAL_ID: "Terminal", ANYBODY.id: "Visitor"}
    name = visitor.name or names.get(visitor.id, f"Visitor {visitor.id[:4]}")
    return Member(
        id=f"{GUILD}:{visitor.id}", name=name, guild=GUILD, is_moderator=visitor.is_operator, scopes=visitor.scopes
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
    actions = request.app[ROUTE_ACTIONS]
    resource = request.match_info.route.resource
    method = "GET" if request.method == "HEAD" else request.method
    return UNKNOWN_ROUTE if resource is None else actions.get(f"{method} {resource.canonical}", UNKNOWN_ROUTE)
