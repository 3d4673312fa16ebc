"""Builds the chatroom as one aiohttp application, and runs its server. Importing this module opens nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp_jinja2
import jinja2
from aiohttp import web

from bot.config import Settings
from bot.desk import Services
from bot.lines import PerMemberLimit
from bot.scrape import MetricsPage
from bot.web import api, body, decisions, described, door, live, metrics, onward, prefer, prints, views, why
from bot.web.auth import HostPolicy, SessionTokens, load_or_create_key
from bot.web.grids import GridCache
from bot.web.told import EventCache

PACKAGE_DIR = Path(__file__).parent
MAX_BODY_BYTES = 64 * 1024  # of a request's body
KEEPALIVE_SECONDS = 30.0  # seconds that a connection may stay open without a request
TEMPLATES = ("base.html", "room.html", "dialogs.html", "discord.html", "enter.html", "sentence.html")


def build_app(
    settings: Settings, services: Services, engine_loading: asyncio.Event | None = None, metrics_snapshot: MetricsPage | None = None,
) -> web.Application:  # fmt: skip
    """Return the chatroom over this desk. The first start writes the room's key into the data folder.

    `warming` is set while an engine that was started with the room is loading. `scrape` makes the metrics page; without
    it there is none.
    """
    app = web.Application(middlewares=[door.handle_errors, door.authenticate], client_max_size=MAX_BODY_BYTES)
    app[live.STUDIO] = services.jobs
    services.jobs.page_addresses = _extra_addresses(settings)
    app[decisions.REVIEW] = services.picture_review
    app[described.IMAGE_TO_PROMPT] = services.image_to_prompt
    app[prefer.FLAG_ALIASES] = services.flag_aliases
    app[live.ENGINE_LOADING] = engine_loading or asyncio.Event()
    app[live.SHUTDOWN] = asyncio.Event()
    app[live.STREAMS] = set()
    app[live.EVENT_CACHE] = EventCache()
    app[body.FORM_SLOTS], app[body.MEMBER_LIMIT] = asyncio.Semaphore(body.MAX_FORMS), PerMemberLimit()
    app[door.HOST_POLICY] = HostPolicy.from_settings(settings.host, settings.public_url, settings.allowed_hosts)
    app[door.SESSION_TOKENS] = SessionTokens(load_or_create_key(settings.data))
    app[door.METRICS_TOKEN] = settings.metrics_token.get_secret_value() if settings.metrics_token else ""
    app[door.SECURE_COOKIE] = settings.public_url.startswith("https://")
    app[prints.GRID_CACHE] = GridCache(prints.MIN_CELL)
    app[views.DISCORD_ENABLED] = settings.discord_token is not None
    _load_templates(app)
    app.add_routes([*views.routes(), *api.routes(), *prints.routes(), *decisions.routes(), *live.routes()])
    app.add_routes([*onward.routes(), *why.routes(), *prefer.routes(), *described.routes()])
    if metrics_snapshot is not None:
        app[metrics.METRICS_SNAPSHOT] = metrics_snapshot
        app.add_routes(metrics.routes())
    app.router.add_static("/static", PACKAGE_DIR / "static")
    app.on_response_prepare.append(door.add_security_headers)
    app.on_shutdown.append(_close_streams)
    return app


def _load_templates(app: web.Application) -> None:
    """Load the templates now: no request waits for the disk."""
    loader = jinja2.FileSystemLoader(PACKAGE_DIR / "templates")
    environment = aiohttp_jinja2.setup(
        app, loader=loader, autoescape=True, auto_reload=False, undefined=jinja2.StrictUndefined
    )
    for name in TEMPLATES:
        environment.get_template(name)


async def _close_streams(app: web.Application) -> None:
    app[live.SHUTDOWN].set()


def _extra_addresses(settings: Settings) -> tuple[str, ...]:
    """Return the room's addresses under other names than this computer's."""
    hosts = (f"{scheme}://{host}" for host in settings.allowed_hosts for scheme in ("https", "http"))
    return (*filter(None, (settings.public_url.rstrip("/"),)), *hosts)


def entry_address(settings: Settings, app: web.Application, port: int) -> str:
    """Return the address to print, with a one-time token where others than this computer can reach the room."""
    base = settings.public_url.rstrip("/") or f"http://{_reachable_host(settings.host)}:{port}"
    if app[door.HOST_POLICY].is_local:
        return f"{base}/"
    return f"{base}/?token={app[door.SESSION_TOKENS].create_invitation(for_owner=True)}"


def _reachable_host(host: str) -> str:
    host_name = host.strip("[]")
    if host_name in {"", "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host_name}]" if ":" in host_name else host_name


@asynccontextmanager
async def run_server(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve the room; yield the port (a free one for 0). Raise OSError if it cannot be bound."""
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=3,
        max_line_size=16384,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=3,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host.strip("[]"), port)
        await site.start()
        port, job_service = runner.addresses[0][1], app[live.STUDIO]
        local_hosts = dict.fromkeys((_reachable_host(host), "127.0.0.1", "localhost", "[::1]"))
        job_service.page_addresses = (*job_service.page_addresses, *(f"http://{name}:{port}" for name in local_hosts))
        yield port
    finally:
        await runner.cleanup()


async def serve_forever(
    app: web.Application, host: str, port: int, on_open: Callable[[int], None] | None = None
) -> None:
    """Serve until cancelled; call `opened_at` with the port once the room is open."""
    async with run_server(app, host, port) as bound_port:
        if on_open is not None:
            on_open(bound_port)
        await asyncio.Event().wait()
