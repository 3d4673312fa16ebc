"""Discord on a port of this machine: REST, uploads, CDN and gateway, around simcord's world.

Before simcord carries a request out it passes the rate limits, the faults that a test ordered, Discord's rules and
the OpenAPI description. Knows HTTP; each of those is a module of its own.
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

from tools.loopback.discord_rules import DiscordRules
from tools.loopback.faults import Fault, Faults
from tools.loopback.gateway import Gateway
from tools.loopback.openapi import RequestValidator
from tools.loopback.rates import Rates, Verdict
from tools.loopback.recorded_request import RecordedRequest, read
from tools.loopback.world import CDN_URL, World

API = "/api/v10"
TOKEN = "loopback.bot.token"
TOKEN_IN_PATH = ("/webhooks/", "/interactions/")  # the path contains the token
VIA = {"Via": "1.1 loopback"}  # without it discord.py treats 429 as a ban
MAX_BODY = 40 << 20  # bytes that the server reads of a request; `rules` has Discord's own limits


class Loopback:
    """The server. It listens within `async with loopback.open():`. A bot needs `api` and `gateway.url`."""

    def __init__(
        self, *, shards: int = 1, clock: Callable[[], float] = time.perf_counter, validates: bool = True
    ) -> None:
        """`validates`: check requests against Discord's description, which costs about three milliseconds each."""
        self.world = World(shards)
        self.clock = clock
        self.gateway = Gateway(self.world, TOKEN)
        self.rates, self.faults, self.rules = Rates(), Faults(clock), DiscordRules(self.world)
        self.judge = RequestValidator()
        self._validates = validates
        self.requests: list[RecordedRequest] = []
        self.gaps: list[str] = []  # requests of the bot that simcord does not support
        self.first_answer_times: dict[int, float] = {}  # interaction → when its first answer was accepted
        self.root = ""

    @property
    def api(self) -> str:
        return self.root + API

    @asynccontextmanager
    async def open(self, port: int = 0) -> AsyncIterator[Loopback]:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_get("/gateway/", self.gateway.connect)
        app.router.add_get("/resume/{session}/", self.gateway.connect)
        app.router.add_get(API + "/gateway/bot", self._answer_gateway_bot)
        app.router.add_route("*", API + "/{path:.*}", self._handle_request)
        app.router.add_get("/attachments/{path:.*}", self._serve_attachment)
        async with TestServer(app, port=port or None, skip_url_asserts=True) as server:
            self.root = str(server.make_url("")).rstrip("/")
            self.gateway.url = self.root.replace("http", "ws", 1) + "/gateway/"
            yield self
            self.gateway.close_connections()

    async def _answer_gateway_bot(self, _request: web.Request) -> web.Response:
        limits = {"total": 1000, "remaining": 999, "reset_after": 0, "max_concurrency": 1}
        return self._json({"url": self.gateway.url, "shards": self.world.shards, "session_start_limit": limits})

    async def _serve_attachment(self, request: web.Request) -> web.Response:
        try:
            return web.Response(body=self.world.read_attachment(request.path))
        except KeyError:
            return web.Response(status=404)

    async def _handle_request(self, request: web.Request) -> web.Response:
        call = RecordedRequest(request.method, request.path.removeprefix(API), dict(request.query), self.clock())
        self.requests.append(call)
        try:
            response = await self._answer(request, call)
        finally:
            call.answered_at = self.clock()
        call.status = response.status
        self.rates.count_answer(call.status, call.answered_at)
        return response

    async def _answer(self, request: web.Request, call: RecordedRequest) -> web.Response:
        """Applies rates, faults, rules, then simcord. Always reads the body, so that the connection can be reused."""
        fault = self.faults.find_fault(call.method, call.path)
        if fault and fault.delay:
            await asyncio.sleep(fault.delay)
        call.body, call.files = await read(request)
        if self._validates:
            self.judge.check_request(call.method, call.path, call.query, call.body, len(call.files))
        verdict = self.rates.count_request(call.method, call.path, self.clock(), time.time())
        if verdict.retry_after is not None:
            return self._answer_rate_limit(verdict)
        if fault and not fault.carried_out and (fault.status or fault.breaks_line):
            return self._answer_fault(request, fault)
        response = self._check_and_carry_out(request, call, verdict.headers)
        if fault and fault.delay_after:
            await asyncio.sleep(fault.delay_after)
        if fault and (fault.status or fault.breaks_line):
            return self._answer_fault(request, fault)
        return response

    def _answer_rate_limit(self, verdict: Verdict) -> web.Response:
        if verdict.is_blocked:  # an answer of the network in front of Discord, not of its API
            return web.Response(text="<h1>You are being blocked</h1>", status=429, content_type="text/html")
        body = {"message": "You are being rate limited.", "retry_after": verdict.retry_after}
        return self._json({**body, "global": verdict.is_global}, 429, {**verdict.headers, **VIA})

    def _answer_fault(self, request: web.Request, fault: Fault) -> web.Response:
        if fault.breaks_line:
            if request.transport:
                request.transport.abort()
            return web.Response(status=500)
        assert fault.status
        if fault.status >= 500:
            return web.Response(text="<h1>upstream error</h1>", status=fault.status, content_type="text/html")
        body: dict[str, Any] = {"code": fault.code, "message": fault.message or "Ordered by a test"}
        if fault.status == 429:
            body |= {"retry_after": fault.retry_after, "global": fault.is_global}
        return self._json(body, fault.status, VIA if fault.status == 429 else None)

    def _check_and_carry_out(
        self, request: web.Request, call: RecordedRequest, headers: dict[str, str]
    ) -> web.Response:
        try:
            self.rules.check(call)
            result = self._carry_out(request, call)
        except (RouteNotImplemented, UnsupportedField) as gap:
            self.gaps.append(str(gap))
            return self._json(gap.to_json(), gap.status, headers)
        except Exception as error:
            if not isinstance(error, BackendError):
                self.gaps.append(f"{call.method} {call.path}: {error!r}")
                raise
            refusal = self.rules.translate_error(call, error)
            if refusal.status == 429:
                body = {**refusal.to_json(), "retry_after": 60.0, "global": False}
                return self._json(body, 429, {**headers, **VIA})
            return self._json(refusal.to_json(), refusal.status, headers)
        return web.Response(status=204, headers=headers) if result is None else self._json(result, 200, headers)

    def _carry_out(self, request: web.Request, call: RecordedRequest) -> Any:
        if not call.path.startswith(TOKEN_IN_PATH) and request.headers.get("Authorization") != f"Bot {TOKEN}":
            raise BackendError(401, 0, "401: Unauthorized")
        if duplicate := self.rules.find_duplicate(call):
            return serializers.message_payload(self.world.backend, duplicate)
        result = dispatch(
            self.world.backend,
            call.method,
            call.path,
            json=call.body,
            params=call.query,
            files=call.files,
            reason=request.headers.get("X-Audit-Log-Reason"),
        )
        self.rules.record_nonce(call, result)
        if call.path.startswith("/interactions/"):
            self.first_answer_times[int(call.path.split("/")[2])] = self.clock()
            return result if call.query.get("with_response") else None
        return result

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
        """Answers with exactly this content type: discord.py reads any other as text."""
        text = json.dumps(value, default=dict).replace(CDN_URL, self.root)
        all_headers = {"Content-Type": "application/json", **(headers or {})}
        return web.Response(body=text.encode(), status=status, headers=all_headers)


async def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Polls `condition` and returns its first true result."""
    deadline = time.perf_counter() + seconds
    while not (result := condition()):
        assert time.perf_counter() < deadline, f"still false after {seconds} s"
        await asyncio.sleep(0.02)
    return result
