"""Discord on a port of this machine: REST, uploads, CDN and gateway, around simcord's world.

A request passes the rates, the troubles that a test ordered, Discord's laws and its OpenAPI description before
simcord's world carries it out. Knows HTTP; each of those is a module of its own.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from simcord.backend.errors import BackendError
from simcord.http.router import RouteNotImplemented, UnsupportedField, dispatch

from loopback.gateway import Gateway
from loopback.world import EVERYWHERE, World

API = "/api/v10"
TOKEN = "loopback.bot.token"
OPEN = ("/webhooks/", "/interactions/")  # the token stands in the address
BODY = 40 << 20  # bytes that we read of a request; Discord's own limits are laws


@dataclass
class File:
    """An uploaded file, as simcord takes it."""

    filename: str
    payload: bytes
    description: str | None = None
    fp: io.BytesIO = field(init=False)

    def __post_init__(self) -> None:
        self.fp = io.BytesIO(self.payload)


@dataclass
class Asked:
    """One request and what became of it; times by the server's clock."""

    method: str
    path: str  # without the API's prefix
    query: dict[str, str]
    at: float
    body: Any = None
    files: list[File] = field(default_factory=list)
    status: int = 0
    done: float = 0.0

    @property
    def size(self) -> int:
        return sum(len(each.payload) for each in self.files)


class Loopback:
    """The server. `async with loopback.open():` it listens; `api` and `gateway.url` are what a bot needs."""

    def __init__(self, *, shards: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        self.world = World(shards)
        self.clock = clock
        self.gateway = Gateway(self.world, TOKEN)
        self.asked: list[Asked] = []
        self.gaps: list[str] = []  # what the bot asked for and simcord does not have
        self.answered: dict[int, float] = {}  # interaction → when its first answer was taken
        self.root = ""

    @property
    def api(self) -> str:
        return self.root + API

    @asynccontextmanager
    async def open(self, port: int = 0) -> AsyncIterator[Loopback]:
        app = web.Application(client_max_size=BODY)
        app.router.add_get("/gateway/", self.gateway.connect)
        app.router.add_get("/resume/{session}/", self.gateway.connect)
        app.router.add_get(API + "/gateway/bot", self._where)
        app.router.add_route("*", API + "/{path:.*}", self._rest)
        app.router.add_get("/attachments/{path:.*}", self._file)
        async with TestServer(app, port=port or None, skip_url_asserts=True) as server:
            self.root = str(server.make_url("")).rstrip("/")
            self.gateway.url = self.root.replace("http", "ws", 1) + "/gateway/"
            yield self
            self.gateway.drop()

    async def _where(self, _request: web.Request) -> web.Response:
        limits = {"total": 1000, "remaining": 999, "reset_after": 0, "max_concurrency": 1}
        return self._json({"url": self.gateway.url, "shards": self.world.shards, "session_start_limit": limits})

    async def _file(self, request: web.Request) -> web.Response:
        try:
            return web.Response(body=self.world.file(request.path))
        except KeyError:
            return web.Response(status=404)

    async def _rest(self, request: web.Request) -> web.Response:
        asked = Asked(request.method, request.path.removeprefix(API), dict(request.query), self.clock())
        self.asked.append(asked)
        try:
            response = await self._answer(request, asked)
        finally:
            asked.done = self.clock()
        asked.status = response.status
        return response

    async def _answer(self, request: web.Request, asked: Asked) -> web.Response:
        asked.body, asked.files = await read(request)
        try:
            told = self._carry_out(request, asked)
        except (RouteNotImplemented, UnsupportedField) as gap:
            self.gaps.append(str(gap))
            return self._error(gap)
        except BackendError as error:
            return self._error(error)
        return web.Response(status=204) if told is None else self._json(told)

    def _carry_out(self, request: web.Request, asked: Asked) -> Any:
        if not asked.path.startswith(OPEN) and request.headers.get("Authorization") != f"Bot {TOKEN}":
            raise BackendError(401, 0, "401: Unauthorized")
        told = dispatch(
            self.world.backend, asked.method, asked.path, json=asked.body, params=asked.query, files=asked.files,
            reason=request.headers.get("X-Audit-Log-Reason"),
        )  # fmt: skip
        if asked.path.startswith("/interactions/"):
            self.answered[int(asked.path.split("/")[2])] = self.clock()
            return told if asked.query.get("with_response") else None
        return told

    def _error(self, error: BackendError, headers: dict[str, str] | None = None) -> web.Response:
        return self._json(error.to_json(), error.status, headers)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
        """With exactly this content type: discord.py takes any other for text."""
        text = json.dumps(value, default=dict).replace(EVERYWHERE, self.root)
        told = {"Content-Type": "application/json", **(headers or {})}
        return web.Response(body=text.encode(), status=status, headers=told)


async def read(request: web.Request) -> tuple[Any, list[File]]:
    """The body as JSON, and the files of a multipart one with the descriptions that go with them."""
    if not request.content_type.startswith("multipart/"):
        raw = await request.read()
        return (json.loads(raw) if raw else None), []
    body: Any = None
    files: dict[int, File] = {}
    parts: Any = await request.multipart()
    async for part in parts:
        if part.name == "payload_json":
            body = json.loads(await part.text())
        else:
            files[int(part.name[6:-1])] = File(part.filename, bytes(await part.read()))  # "files[3]"
    data = (body or {}).get("data") or body or {}
    for told in data.get("attachments") or ():
        if int(told["id"]) in files:
            files[int(told["id"])].description = told.get("description")
    return body, [files[number] for number in sorted(files)]


async def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer."""
    ends = time.perf_counter() + seconds
    while not (found := what()):
        assert time.perf_counter() < ends, f"not in {seconds} s"
        await asyncio.sleep(0.02)
    return found
