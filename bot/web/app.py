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
from bot.desk import Desk
from bot.lines import Lines
from bot.scrape import Scrape
from bot.web import api, body, decisions, described, door, live, metrics, onward, prefer, prints, views, why
from bot.web.auth import Door, Gate, key_of
from bot.web.grids import Grids
from bot.web.told import Texts

HERE = Path(__file__).parent
MOST_BYTES = 64 * 1024  # of a request's body
IDLE = 30.0  # seconds that a connection may stay open without a request
TEMPLATES = ("base.html", "room.html", "dialogs.html", "discord.html", "enter.html", "sentence.html")


def open_chatroom(
    settings: Settings, desk: Desk, warming: asyncio.Event | None = None, scrape: Scrape | None = None,
) -> web.Application:  # fmt: skip
    """Return the chatroom over this desk. The first start writes the room's key into the data folder.

    `warming` is set while an engine that was started with the room is loading. `scrape` makes the metrics page; without
    it there is none.
    """
    app = web.Application(middlewares=[door.errors, door.entrance], client_max_size=MOST_BYTES)
    app[live.STUDIO] = desk.studio
    desk.studio.addresses = _named(settings)
    app[decisions.REVIEW] = desk.review
    app[described.DESCRIBING] = desk.describing
    app[prefer.OPTIONS] = desk.options
    app[live.WARMING] = warming or asyncio.Event()
    app[live.CLOSING] = asyncio.Event()
    app[live.STREAMS] = set()
    app[live.TEXTS] = Texts()
    app[body.FORMS], app[body.LINES] = asyncio.Semaphore(body.AT_ONCE), Lines()
    app[door.DOOR] = Door.of(settings.host, settings.public_url, settings.allowed_hosts)
    app[door.GATE] = Gate(key_of(settings.data))
    app[door.SCRAPER] = settings.metrics_token.get_secret_value() if settings.metrics_token else ""
    app[door.SECURE] = settings.public_url.startswith("https://")
    app[prints.GRIDS] = Grids(prints.CELL)
    app[views.IN_DISCORD] = settings.discord_token is not None
    _furnish(app)
    app.add_routes([*views.routes(), *api.routes(), *prints.routes(), *decisions.routes(), *live.routes()])
    app.add_routes([*onward.routes(), *why.routes(), *prefer.routes(), *described.routes()])
    if scrape is not None:
        app[metrics.SCRAPE] = scrape
        app.add_routes(metrics.routes())
    app.router.add_static("/static", HERE / "static")
    app.on_response_prepare.append(door.dress)
    app.on_shutdown.append(_close)
    return app


def _furnish(app: web.Application) -> None:
    """Load the templates now: no request waits for the disk."""
    loader = jinja2.FileSystemLoader(HERE / "templates")
    room = aiohttp_jinja2.setup(
        app, loader=loader, autoescape=True, auto_reload=False, undefined=jinja2.StrictUndefined
    )
    for name in TEMPLATES:
        room.get_template(name)


async def _close(app: web.Application) -> None:
    app[live.CLOSING].set()


def _named(settings: Settings) -> tuple[str, ...]:
    """Return the room's addresses under other names than this computer's."""
    hosts = (f"{scheme}://{host}" for host in settings.allowed_hosts for scheme in ("https", "http"))
    return (*filter(None, (settings.public_url.rstrip("/"),)), *hosts)


def address(settings: Settings, app: web.Application, port: int) -> str:
    """Return the address to print, with a one-time token where others than this computer can reach the room."""
    base = settings.public_url.rstrip("/") or f"http://{_reachable(settings.host)}:{port}"
    if app[door.DOOR].open:
        return f"{base}/"
    return f"{base}/?token={app[door.GATE].invite(owner=True)}"


def _reachable(host: str) -> str:
    bare = host.strip("[]")
    if bare in {"", "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{bare}]" if ":" in bare else bare


@asynccontextmanager
async def opened(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve the room; yield the port (a free one for 0). Raise OSError if it cannot be bound."""
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=3, max_line_size=16384, keepalive_timeout=IDLE, lingering_time=3
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host.strip("[]"), port)
        await site.start()
        port, studio = runner.addresses[0][1], app[live.STUDIO]
        here = dict.fromkeys((_reachable(host), "127.0.0.1", "localhost", "[::1]"))
        studio.addresses = (*studio.addresses, *(f"http://{name}:{port}" for name in here))
        yield port
    finally:
        await runner.cleanup()


async def serve(app: web.Application, host: str, port: int, opened_at: Callable[[int], None] | None = None) -> None:
    """Serve until cancelled; call `opened_at` with the port once the room is open."""
    async with opened(app, host, port) as real:
        if opened_at is not None:
            opened_at(real)
        await asyncio.Event().wait()
