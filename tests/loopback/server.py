"""Discord on a port of this machine: REST, uploads, CDN and gateway, around simcord's world.

A request passes the rates, the troubles that a test ordered, Discord's laws and its OpenAPI description before
simcord's world carries it out. Knows HTTP; each of those is a module of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from simcord.backend import serializers
from simcord.backend.errors import BackendError
from simcord.http.router import RouteNotImplemented, UnsupportedField, dispatch

from loopback.asked import Asked, read
from loopback.gateway import Gateway
from loopback.laws import Laws
from loopback.openapi import Judge
from loopback.rates import Rates, Verdict
from loopback.troubles import Trouble, Troubles
from loopback.world import EVERYWHERE, World

API = "/api/v10"
TOKEN = "loopback.bot.token"
OPEN = ("/webhooks/", "/interactions/")  # the token stands in the address
VIA = {"Via": "1.1 loopback"}  # without it discord.py takes 429 for a ban
BODY = 40 << 20  # bytes that we read of a request; Discord's own limits are laws


class Loopback:
    """The server. `async with loopback.open():` it listens; `api` and `gateway.url` are what a bot needs."""

    def __init__(self, *, shards: int = 1, clock: Callable[[], float] = time.perf_counter, judged: bool = True) -> None:
        """`judged`: hold requests against Discord's description, which costs about three milliseconds each."""
        self.world = World(shards)
        self.clock = clock
        self.gateway = Gateway(self.world, TOKEN)
        self.rates, self.troubles, self.laws = Rates(), Troubles(clock), Laws(self.world)
        self.judge, self._by_book = Judge(), judged
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
        self.rates.answered(asked.status, asked.done)
        return response

    async def _answer(self, request: web.Request, asked: Asked) -> web.Response:
        """Rates, troubles, laws, then simcord; the body is read in any case, or the line could not be used again."""
        trouble = self.troubles.meet(asked.method, asked.path)
        if trouble and trouble.delay:
            await asyncio.sleep(trouble.delay)
        asked.body, asked.files = await read(request)
        if self._by_book:
            self.judge.hear(asked.method, asked.path, asked.query, asked.body, len(asked.files))
        verdict = self.rates.spend(asked.method, asked.path, self.clock(), time.time())
        if verdict.retry_after is not None:
            return self._limited(verdict)
        if trouble and not trouble.carried_out and (trouble.status or trouble.broken):
            return self._befallen(request, trouble)
        response = self._judged(request, asked, verdict.headers)
        if trouble and trouble.late:
            await asyncio.sleep(trouble.late)
        if trouble and (trouble.status or trouble.broken):
            return self._befallen(request, trouble)
        return response

    def _limited(self, verdict: Verdict) -> web.Response:
        if verdict.shut_out:  # by the network in front of Discord, which says so in its own way
            return web.Response(text="<h1>You are being blocked</h1>", status=429, content_type="text/html")
        said = {"message": "You are being rate limited.", "retry_after": verdict.retry_after}
        return self._json({**said, "global": verdict.everywhere}, 429, {**verdict.headers, **VIA})

    def _befallen(self, request: web.Request, trouble: Trouble) -> web.Response:
        if trouble.broken:
            if request.transport:
                request.transport.abort()
            return web.Response(status=500)
        assert trouble.status
        if trouble.status >= 500:
            return web.Response(text="<h1>upstream error</h1>", status=trouble.status, content_type="text/html")
        said: dict[str, Any] = {"code": trouble.code, "message": trouble.message or "Ordered by a test"}
        if trouble.status == 429:
            said |= {"retry_after": trouble.retry_after, "global": trouble.everywhere}
        return self._json(said, trouble.status, VIA if trouble.status == 429 else None)

    def _judged(self, request: web.Request, asked: Asked, headers: dict[str, str]) -> web.Response:
        try:
            self.laws.check(asked)
            told = self._carry_out(request, asked)
        except (RouteNotImplemented, UnsupportedField) as gap:
            self.gaps.append(str(gap))
            return self._json(gap.to_json(), gap.status, headers)
        except Exception as error:
            if not isinstance(error, BackendError):
                self.gaps.append(f"{asked.method} {asked.path}: {error!r}")
                raise
            meant = self.laws.meant(asked, error)
            if meant.status == 429:
                said = {**meant.to_json(), "retry_after": 60.0, "global": False}
                return self._json(said, 429, {**headers, **VIA})
            return self._json(meant.to_json(), meant.status, headers)
        return web.Response(status=204, headers=headers) if told is None else self._json(told, 200, headers)

    def _carry_out(self, request: web.Request, asked: Asked) -> Any:
        if not asked.path.startswith(OPEN) and request.headers.get("Authorization") != f"Bot {TOKEN}":
            raise BackendError(401, 0, "401: Unauthorized")
        if known := self.laws.same(asked):
            return serializers.message_payload(self.world.backend, known)
        told = dispatch(
            self.world.backend, asked.method, asked.path, json=asked.body, params=asked.query, files=asked.files,
            reason=request.headers.get("X-Audit-Log-Reason"),
        )  # fmt: skip
        self.laws.posted(asked, told)
        if asked.path.startswith("/interactions/"):
            self.answered[int(asked.path.split("/")[2])] = self.clock()
            return told if asked.query.get("with_response") else None
        return told

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
        """With exactly this content type: discord.py takes any other for text."""
        text = json.dumps(value, default=dict).replace(EVERYWHERE, self.root)
        told = {"Content-Type": "application/json", **(headers or {})}
        return web.Response(body=text.encode(), status=status, headers=told)


async def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer."""
    ends = time.perf_counter() + seconds
    while not (found := what()):
        assert time.perf_counter() < ends, f"not in {seconds} s"
        await asyncio.sleep(0.02)
    return found
