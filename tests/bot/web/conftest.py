"""The whole bot behind a real HTTP server: SQLite, nats-server, the real studio and a worker that draws discs; and a
browser to visit it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright

from bot.app.settings import Settings, load_settings
from bot.app.wiring import open_app
from bot.services import Services
from bot.web.app import build_app, run_server
from engine.bus import Bus
from engine.bus.broker.embedded import Broker
from shared.painter import Painter, disc, stop

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
class Room:
    """A running web page: its address, a client that authenticates as the terminal, and the objects behind it."""

    url: str
    port: int
    client: aiohttp.ClientSession
    desk: Services
    app: web.Application
    settings: Settings
    drawers: list[Painter] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of one request. Names in `headers` have `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, self.url + path, json=body, headers=named) as answer:
            return answer.status, await answer.json()

    async def imagine(self, prompt: str, **options: object) -> str:
        """Requests a job and returns its id."""
        status, reply = await self.ask("POST", "/api/jobs", {"prompt": prompt, **options})
        assert status == 201, reply
        return str(reply["id"])

    async def events(self, path: str, **headers: str) -> AsyncIterator[tuple[str, Any]]:
        """Server-sent events as name and value."""
        async with self.client.get(self.url + path, headers=headers) as answer:
            assert answer.status == 200
            name = ""
            async for raw in answer.content:
                key, _, value = raw.decode().rstrip("\r\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)

    async def end_of(self, job: str) -> dict[str, Any]:
        """The job once it has ended."""
        async for name, value in self.events(f"/api/jobs/{job}/events"):
            if name in {"finished", "failed", "cancelled"}:
                return value
        raise AssertionError("the stream ended before the job")


OpenRoom = Callable[..., Any]


@pytest.fixture
def open_room(tmp_path: Path, broker: Broker) -> OpenRoom:
    """`async with open_room(port=…, workers=1, **settings)`: a web page on the test's folder and broker."""

    @asynccontextmanager
    async def opening(*, port: int = 0, workers: int = 1, **chosen: Any) -> AsyncIterator[Room]:
        settings = await asyncio.to_thread(
            load_settings, data=tmp_path, **{"host": "127.0.0.1", "discord_token": None, **chosen}
        )
        async with AsyncExitStack() as parts:
            bot_app = await parts.enter_async_context(open_app(settings, await _bus(parts, broker)))
            app = await asyncio.to_thread(build_app, settings, bot_app.services, metrics_snapshot=bot_app.metrics_page)
            real = await parts.enter_async_context(run_server(app, "127.0.0.1", port))
            client = await parts.enter_async_context(aiohttp.ClientSession(read_bufsize=1 << 20))
            room = Room(f"http://127.0.0.1:{real}", real, client, bot_app.services, app, settings)
            for _ in range(workers):
                room.drawers.append(await parts.enter_async_context(working(broker)))
            await _until(lambda: len(room.desk.live_workers()) >= workers)
            yield room

    return opening


@asynccontextmanager
async def working(broker: Broker) -> AsyncIterator[Painter]:
    """A worker online, on a connection of its own."""
    async with AsyncExitStack() as parts:
        drawer = Painter(await _bus(parts, broker), steps=STEPS, paint=disc, speed=0.02)
        task = asyncio.create_task(drawer.run())
        try:
            yield drawer
        finally:
            await stop(task)


async def _bus(parts: AsyncExitStack, broker: Broker) -> Bus:
    bus = await Bus.connect(broker.url, broker.token)
    parts.push_async_callback(bus.close)
    await bus.declare()
    return bus


async def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    async with Broker(tmp_path_factory.mktemp("nats"), token="a-token-for-tests") as running:
        yield running


@pytest_asyncio.fixture
async def room(open_room: OpenRoom) -> AsyncIterator[Room]:
    """A web page with one worker."""
    async with open_room() as one:
        yield one


@pytest_asyncio.fixture
async def browser(needs: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """A browser with a profile of its own."""
    program = needs("chromium", "chromium-browser", "google-chrome")
    folder, path = str(tmp_path_factory.mktemp("chromium")), os.environ.get("PATH", "")
    async with async_playwright() as playwright:
        one = await playwright.chromium.launch(executable_path=program, args=FLAGS, env={"HOME": folder, "PATH": path})
        yield one
        await one.close()


@pytest_asyncio.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page. An error or warning in its console fails the test, except for answers of 4xx."""
    one = await browser.new_page(viewport={"width": 1180, "height": 820})
    complaints: list[str] = []
    one.on("pageerror", lambda error: complaints.append(str(error)))
    one.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    yield one
    serious = [text for text in complaints if "Failed to load resource" not in text]
    assert serious == []
