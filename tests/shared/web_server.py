"""The whole bot behind a real HTTP server: SQLite, nats-server, the real services and a worker that draws discs; and
a browser to visit it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright

from bot.app.settings import Settings, load_settings
from bot.app.wiring import open_app
from bot.services import Services
from bot.services.api_keys import ApiKeys
from bot.services.sessions import Sessions
from bot.store.members.sessions import SessionKind
from bot.web.app import build_app, entry_address, run_server
from bot.web.auth import COOKIE_NAME, new_visitor_id, terminal_key
from bot.web.middleware import HOST_POLICY
from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from shared.clock import wait_until
from shared.migrated_database import put_migrated_database
from tools.painter import PaintFunction, PaintingWorker, cancel_task, paint_disc, paint_solid

STEPS = 24
FLAGS = [
    "--headless",
    "--no-sandbox",  # as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class WebServer:
    """A running web page: its address, a client that is the terminal of an open page, and the objects behind it."""

    url: str
    port: int
    client: aiohttp.ClientSession
    services: Services
    app: web.Application
    settings: Settings
    workers: list[PaintingWorker] = field(default_factory=list)

    async def request_json(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Sends one request; returns status and JSON. Names in `headers` have `_` for `-`."""
        header_values = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, self.url + path, json=body, headers=header_values) as answer:
            return answer.status, await answer.json()

    async def start_session(self, kind: SessionKind) -> str:
        """Signs a new visitor in; returns the Cookie header."""
        cookie, _ = await self.services.get(Sessions).start(kind, new_visitor_id())
        return f"{COOKIE_NAME}={cookie}"

    async def imagine(self, prompt: str, **options: object) -> str:
        """Requests a job and returns its id."""
        status, reply = await self.request_json("POST", "/api/jobs", {"prompt": prompt, **options})
        assert status == 201, reply
        return str(reply["id"])

    async def events(self, path: str, **headers: str) -> AsyncIterator[tuple[str, Any]]:
        """Yields server-sent events as name and value."""
        async with self.client.get(self.url + path, headers=headers) as answer:
            assert answer.status == 200
            name = ""
            async for raw in answer.content:
                key, _, value = raw.decode().rstrip("\r\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)

    async def wait_for_end(self, job: str) -> dict[str, Any]:
        """Waits for the job's end; returns its last event."""
        async for name, value in self.events(f"/api/jobs/{job}/events"):
            if name in {"finished", "failed", "cancelled"}:
                return value
        raise AssertionError("the stream ended before the job")


OpenServer = Callable[..., Any]


@pytest.fixture
def open_server(tmp_path: Path, broker: Broker) -> OpenServer:
    """`async with open_server(port=…, workers=1, **settings)`: a web page on the test's folder and broker."""
    put_migrated_database(tmp_path)
    return partial(serve_page, tmp_path, broker)


@asynccontextmanager
async def serve_page(
    folder: Path, broker: Broker, *, port: int = 0, workers: int = 1, paint: PaintFunction = paint_disc, **options: Any
) -> AsyncIterator[WebServer]:
    """Serves a web page on a folder with a migrated database."""
    settings = await asyncio.to_thread(
        load_settings, data=folder, **{"host": "127.0.0.1", "discord_token": None, **options}
    )
    async with AsyncExitStack() as parts:
        bot_app = await parts.enter_async_context(open_app(settings, await connect(parts, broker)))
        app = await asyncio.to_thread(build_app, settings, bot_app.services, metrics_snapshot=bot_app.metrics_page)
        real_port = await parts.enter_async_context(run_server(app, "127.0.0.1", port))
        headers = await asyncio.to_thread(_terminal_headers, settings, app)
        client = await parts.enter_async_context(aiohttp.ClientSession(read_bufsize=1 << 20, headers=headers))
        server = WebServer(f"http://127.0.0.1:{real_port}", real_port, client, bot_app.services, app, settings)
        for _ in range(workers):
            server.workers.append(await parts.enter_async_context(start_worker(broker, paint)))
        await wait_until(lambda: len(server.services.live_workers()) >= workers)
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WebServer]:
    """One web page for all tests of a module, which share its event loop. Its worker paints pictures of any size."""
    async with open_shared_page(tmp_path_factory) as server:
        yield server


@asynccontextmanager
async def open_shared_page(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> AsyncIterator[WebServer]:
    """Serves a page as `shared_server` is, with other settings."""
    folder = tmp_path_factory.mktemp("page")
    await asyncio.to_thread(put_migrated_database, folder)
    async with (
        Broker(tmp_path_factory.mktemp("nats"), token="a-token-for-tests") as broker,
        serve_page(folder, broker, paint=paint_solid, **options) as server,
    ):
        server.workers[0].speed = 0.005
        yield server


def _terminal_headers(settings: Settings, app: web.Application) -> dict[str, str]:
    """The terminal's key where the page is open; where it is closed, tests ask as strangers."""
    is_open = app[HOST_POLICY].is_local
    return {"Authorization": f"Bearer {terminal_key(settings.data)}"} if is_open else {}


@asynccontextmanager
async def start_worker(broker: Broker, paint: PaintFunction = paint_disc) -> AsyncIterator[PaintingWorker]:
    """Runs a worker on a connection of its own."""
    async with AsyncExitStack() as parts:
        worker = PaintingWorker(await connect(parts, broker), steps=STEPS, paint=paint, speed=0.02)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            await cancel_task(task)


async def connect(parts: AsyncExitStack, broker: Broker) -> Bus:
    bus = await Bus.connect(broker.url, broker.token)
    parts.push_async_callback(bus.close)
    await bus.declare()
    return bus


@contextmanager
def pause_jobs(worker: PaintingWorker, step: int = 3) -> Iterator[asyncio.Event]:
    """Pauses every job at a step until the event is set, at the latest at the end."""
    worker.pause_step = step
    try:
        yield worker.step_gate
    finally:
        worker.pause_step = None
        worker.step_gate.set()


@pytest_asyncio.fixture
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    async with start_broker(tmp_path_factory) as broker:
        yield broker


def start_broker(tmp_path_factory: pytest.TempPathFactory) -> Broker:
    return Broker(tmp_path_factory.mktemp("nats"), token="a-token-for-tests")


@pytest_asyncio.fixture
async def server(open_server: OpenServer) -> AsyncIterator[WebServer]:
    """A web page with one worker."""
    async with open_server() as server:
        yield server


@pytest_asyncio.fixture
async def browser(find_program: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """Starts a browser with a profile of its own."""
    async with launch_browser(find_program, tmp_path_factory) as browser:
        yield browser


@pytest_asyncio.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page. An error or warning in its console fails the test, except for answers of 4xx."""
    async with open_clean_page(browser) as page:
        yield page


@asynccontextmanager
async def launch_browser(
    find_program: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Browser]:
    program = find_program("chromium", "chromium-browser", "google-chrome")
    folder = str(tmp_path_factory.mktemp("chromium"))
    path = os.environ.get("PATH", "")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=FLAGS, env={"HOME": folder, "PATH": path}
        )
        yield browser
        await browser.close()


@asynccontextmanager
async def open_clean_page(browser: Browser) -> AsyncIterator[Page]:
    """A page of its own context; what its console complains about fails the test at the end."""
    page = await browser.new_page(viewport={"width": 1180, "height": 820})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None
    )
    yield page
    serious_complaints = [text for text in complaints if "Failed to load resource" not in text]
    assert serious_complaints == []


PAGE_HEADERS = {"X-Darkroom": "test"}


def make_form(request: object, *files: tuple[str, bytes]) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("request", json.dumps(request), content_type="application/json")
    for name, content in files:
        data.add_field(name, content, filename=name, content_type="application/octet-stream")
    return data


async def send_form(
    server: WebServer, path: str, data: aiohttp.FormData, headers: dict[str, str] = PAGE_HEADERS
) -> tuple[int, Any]:
    async with server.client.post(server.url + path, data=data, headers=headers) as answer:
        return answer.status, await answer.json()


async def make_key(server: WebServer, name: str, *scopes: str, seconds: float | None = None) -> str:
    keys = server.services.get(ApiKeys)
    return await keys.add(await keys.prepare(name, scopes or ("imagine", "read"), seconds))


async def ask(server: WebServer, method: str, path: str, authorization: str, body: object = None) -> tuple[int, str]:
    """The status and the text of an answer to a program, which has no cookie."""
    headers = {"Authorization": authorization}
    async with (
        aiohttp.ClientSession() as program,
        program.request(method, server.url + path, headers=headers, json=body) as answer,
    ):
        assert (answer.status == 401) == ("WWW-Authenticate" in answer.headers)
        return answer.status, await answer.text()


def one_time_address(server: WebServer) -> str:
    return f"{server.url}/?{urlsplit(entry_address(server.settings, server.app, server.port)).query}"


def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


def follow_link(browser: aiohttp.ClientSession, link: str, **headers: str) -> AbstractAsyncContextManager[Any]:
    """Sends what the button of the page sends."""
    address = urlsplit(link)
    body = {"token": address.query.removeprefix("token=")}
    return browser.post(f"{address.scheme}://{address.netloc}/api/entrance", json=body, headers=headers)
