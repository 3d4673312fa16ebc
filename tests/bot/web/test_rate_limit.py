"""The page's rates: a visitor's flood is refused with the time to wait, and nobody else notices it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from bot.policy.limits import RATES, TokenBuckets
from bot.web import middleware

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio


async def test_every_route_has_its_rate(server: WebServer) -> None:
    registered = {
        f"{route.method} {route.resource.canonical}"
        for route in server.app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert registered == set(server.app[middleware.ROUTE_ACTIONS])


async def test_a_flood_of_a_guest_is_refused_and_others_are_served(open_server: OpenServer) -> None:
    async with open_server(allowed_hosts=("other.example",)) as server:
        ann = {"Cookie": await server.start_session("guest")}
        bob = {"Cookie": await server.start_session("guest")}
        statuses = list[int]()
        last = dict[str, str]()
        retry_after = None
        for _ in range(int(RATES["look"].burst / 10) + 40):
            async with server.client.get(server.url + "/api/jobs", headers=ann) as answer:
                statuses.append(answer.status)
                last = await answer.json()
                retry_after = answer.headers.get("Retry-After")
            if answer.status == 429:
                break
        assert statuses[-1] == 429
        assert set(statuses[:-1]) == {200}
        assert last["error"].startswith("That is too much at once: try again in about ")
        assert retry_after == "1"
        async with server.client.get(server.url + "/api/jobs", headers=bob) as answer:
            assert answer.status == 200


async def test_a_public_address_is_charged_before_anybody_is_looked_up(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[tuple[str, str]]()

    def refuse(_buckets: TokenBuckets, payer: str, action: str) -> float:
        taken.append((payer, action))
        return 7.2

    async with open_server(allowed_hosts=("other.example",)) as server:
        monkeypatch.setattr(TokenBuckets, "take", refuse)
        monkeypatch.setattr(middleware, "address_group", lambda _address: "203.0.113.7")
        forged = {"Cookie": f"{middleware.COOKIE_NAME}=forged"}
        for headers in ({}, forged):
            async with server.client.get(server.url + "/api/jobs", headers=headers) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "8")
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert taken == [("203.0.113.7", "stranger")] * 2


async def test_what_all_visitors_behind_a_proxy_need_has_no_shared_rate(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server(allowed_hosts=("other.example",)) as server:
        monkeypatch.setattr(TokenBuckets, "take", lambda *_arguments: 7.2)
        for path, status in (("/healthz", 200), ("/static/icon.svg", 200), ("/api/jobs", 403)):
            async with server.client.get(server.url + path) as answer:
                assert answer.status == status, path


async def test_in_an_open_room_a_request_without_a_cookie_pays_the_same_price(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = server.app[middleware.TOKEN_BUCKETS]
    now = time.monotonic()
    monkeypatch.setattr(tokens, "_clock", lambda: now)  # no token comes back meanwhile
    while not tokens.take(middleware.ANYBODY.id, "imagine"):
        pass
    async with aiohttp.ClientSession() as stranger, stranger.get(server.url + "/api/workers") as answer:
        assert answer.status == 200
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.post(server.url + "/api/jobs", headers={"X-Darkroom": "1"}, data=b"") as answer,
    ):
        assert answer.status == 429
