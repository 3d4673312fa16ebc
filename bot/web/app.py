"""Builds the chatroom as one aiohttp application with its metrics, and runs its server. Importing it opens nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp_jinja2
import jinja2
import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from bot.app.metrics import MetricsPage
from bot.app.settings import Settings
from bot.domain.concurrency import PerMemberLimit
from bot.domain.errors import UserError
from bot.domain.permission import Action
from bot.jobs.init_images import PageAddresses
from bot.policy.limits import TokenBuckets
from bot.services import Services
from bot.services.api_keys import ApiKeys
from bot.services.moderation.picture_review import PictureReview
from bot.services.sessions import Sessions
from bot.web import media, middleware, pages, request_body, sse
from bot.web.api import edits, jobs, openapi, review, steering
from bot.web.auth import HostPolicy, SessionTokens, load_or_create_key
from bot.web.connections import ConnectionLimits, ConnectionTable, GuardedConnection
from bot.web.listener import listen
from bot.web.media import GridCache
from bot.web.middleware import METRICS_PATH, VISITOR
from bot.web.routes import Route, Shape, answer_json, list_feature_routes, set_up_features
from bot.web.sse import EventCache, JobCache

PACKAGE_DIR = Path(__file__).parent
MAX_BODY_BYTES = 64 * 1024  # of a request's body
HEADER_SECONDS = 10.0  # until the headers of a connection's first request have arrived
KEEPALIVE_SECONDS = 30.0  # seconds that a connection may stay open without a request
MIDDLEWARES = (middleware.handle_errors, middleware.limit_address, middleware.authenticate, middleware.limit_rate)
PARTS = (jobs, sse, steering, media, edits, review, pages, openapi)
METRICS_SNAPSHOT = web.AppKey("metrics_snapshot", MetricsPage)
TEMPLATES = ("base.html", "chatroom.html", "desk.html", "dialogs.html", "discord.html", "enter.html", "sentence.html")


def build_app(
    settings: Settings,
    services: Services,
    engine_loading: asyncio.Event | None = None,
    metrics_snapshot: MetricsPage | None = None,
) -> web.Application:
    """Return the chatroom over these services. The first start writes the chatroom's key into the data folder.

    `engine_loading` is set while an engine that was started with the chatroom is loading. `metrics_snapshot` makes the
    metrics page; without it there is none.
    """
    app = web.Application(middlewares=MIDDLEWARES, client_max_size=MAX_BODY_BYTES)
    app[sse.SERVICES] = services
    app[middleware.SESSIONS] = services.get(Sessions)
    app[middleware.API_KEYS] = services.get(ApiKeys)
    services.get(PageAddresses).add(*_extra_addresses(settings))
    app[review.REVIEW] = services.get(PictureReview)
    app[sse.ENGINE_LOADING] = engine_loading or asyncio.Event()
    app[sse.SHUTDOWN] = asyncio.Event()
    app[sse.STREAMS] = set()
    app[sse.EVENT_CACHE] = EventCache()
    app[sse.JOB_CACHE] = JobCache()
    app[sse.PAGE_JOBS] = sse.share_page_jobs(services)
    app[request_body.FORM_MEMORY] = request_body.FormMemory()
    app[request_body.MEMBER_LIMIT] = PerMemberLimit()
    app[middleware.TOKEN_BUCKETS] = TokenBuckets()
    app[middleware.HOST_POLICY] = HostPolicy.from_settings(settings.host, settings.public_url, settings.allowed_hosts)
    app[middleware.SESSION_TOKENS] = SessionTokens(load_or_create_key(settings.data))
    app[middleware.METRICS_TOKEN] = settings.metrics_token.get_secret_value() if settings.metrics_token else ""
    app[middleware.SECURE_COOKIE] = settings.public_url.startswith("https://")
    app[media.GRID_CACHE] = GridCache(media.MIN_CELL)
    set_up_features(app)
    app[pages.DISCORD_ENABLED] = settings.discord_token is not None
    _load_templates(app)
    if metrics_snapshot is not None:
        app[METRICS_SNAPSHOT] = metrics_snapshot
    tagged_routes = list_routes(with_metrics=metrics_snapshot is not None)
    routes = [route for _, route in tagged_routes]
    app.add_routes([web.route(route.method, route.path, route.handler) for route in routes])
    app.router.add_static("/static", PACKAGE_DIR / "static")
    actions: dict[str, Action] = {f"{route.method} {route.address}": route.action for route in routes}
    app[middleware.ROUTE_ACTIONS] = {**actions, "GET /static": "file"}
    app[openapi.DESCRIPTION] = json.dumps(openapi.describe_routes(tagged_routes))
    app.on_response_prepare.append(middleware.add_security_headers)
    app.on_shutdown.append(_close_streams)
    return app


def list_routes(*, with_metrics: bool = True) -> list[tuple[str, Route]]:
    """Return every route but that of the static files, each with what it is about."""
    core = [(str(part.TITLE), route) for part in PARTS for route in part.ROUTES]
    operation = [("Operation", route) for route in METRICS_ROUTES] if with_metrics else []
    return [*core, *operation, *list_feature_routes()]


def _load_templates(app: web.Application) -> None:
    """Load the templates now: no request waits for the disk."""
    loader = jinja2.FileSystemLoader(PACKAGE_DIR / "templates")
    environment = aiohttp_jinja2.setup(
        app, loader=loader, autoescape=True, auto_reload=False, undefined=jinja2.StrictUndefined
    )
    for name in TEMPLATES:
        environment.get_template(name)


async def _close_streams(app: web.Application) -> None:
    app[sse.SHUTDOWN].set()


def _extra_addresses(settings: Settings) -> tuple[str, ...]:
    """Return the chatroom's addresses under other names than this computer's."""
    hosts = (f"{scheme}://{host}" for host in settings.allowed_hosts for scheme in ("https", "http"))
    return (*filter(None, (settings.public_url.rstrip("/"),)), *hosts)


def entry_address(settings: Settings, app: web.Application, port: int) -> str:
    """Return the address to print. Its one-time token makes the first visitor who opens it the operator."""
    base = settings.public_url.rstrip("/") or f"http://{_reachable_host(settings.host)}:{port}"
    return f"{base}/?token={app[middleware.SESSION_TOKENS].create_invitation(for_operator=True)}"


def _reachable_host(host: str) -> str:
    host_name = host.strip("[]")
    if host_name in {"", "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host_name}]" if ":" in host_name else host_name


@asynccontextmanager
async def run_server(
    app: web.Application, host: str, port: int, limits: ConnectionLimits | None = None
) -> AsyncGenerator[int]:
    """Serve the chatroom; yield the port (a free one for 0). Raise OSError if it cannot be bound.

    `limits`: of connections; they never take the descriptors that database, broker and files need.
    """
    limits = limits or ConnectionLimits()
    runner = web.AppRunner(app, shutdown_timeout=3)
    await runner.setup()
    assert runner.server is not None
    table = ConnectionTable(limits.below_descriptors(), limits.per_address)
    make_connection = partial(
        GuardedConnection,
        runner.server,
        table=table,
        error_headers=middleware.security_headers(app),
        access_log=None,
        max_line_size=16384,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=3,
    )
    try:
        header_seconds = min(HEADER_SECONDS, KEEPALIVE_SECONDS)
        async with listen(host.strip("[]"), port, table, make_connection, header_seconds=header_seconds) as port:
            local_hosts = dict.fromkeys((_reachable_host(host), "127.0.0.1", "localhost", "[::1]"))
            app[sse.SERVICES].get(PageAddresses).add(*(f"http://{name}:{port}" for name in local_hosts))
            yield port
    finally:
        await runner.cleanup()


class Rejection(msgspec.Struct, frozen=True):
    """A sender's messages that were refused: why, and how many."""

    sender: str
    reason: str
    count: int


class Rejections(msgspec.Struct, frozen=True):
    """The messages that were refused in the last minute."""

    rejections: list[Rejection]


async def get_metrics(request: web.Request) -> web.Response:
    """Return all metrics in the format that the scraper prefers."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    body = await request.app[METRICS_SNAPSHOT].render(encode)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def list_rejections(request: web.Request) -> web.Response:
    """Return the workers' messages that were refused in the last minute. They may hold text of any client of the
    broker.
    """
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may see the refused messages.", 403)
    return answer_json(msgspec.convert({"rejections": request.app[METRICS_SNAPSHOT].refused_messages()}, Rejections))


METRICS_ROUTES = (
    Route("GET", METRICS_PATH, get_metrics, "list", Shape(content=("text/plain",))),
    Route("GET", "/api/rejections", list_rejections, "list", Shape(Rejections)),
)
