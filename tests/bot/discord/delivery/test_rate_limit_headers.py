"""The edit policy learns Discord's limits from its headers: a real client, a real server, real headers."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bot.discord.delivery.discord_api import (
    bucket_of_request,
    edit_bucket,
    parse_limits,
    post_bucket,
    trace_rate_limits,
)
from bot.discord.delivery.edit_policy import Edit, EditPolicy

WHERE = {"channel": "5", "token": "a.b-c", "token_until": "100"}


def test_a_bucket_has_one_name_for_all_its_routes() -> None:
    assert bucket_of_request("PATCH", "/api/v10/channels/5/messages/7") == edit_bucket(WHERE, now=101.0) == "channel:5"
    assert bucket_of_request("PATCH", "/api/v10/webhooks/9/a.b-c/messages/@original") == edit_bucket(WHERE, now=99.0)
    assert "a.b-c" not in edit_bucket(WHERE, now=99.0)
    assert bucket_of_request("POST", "/api/v10/channels/5/messages") == post_bucket(WHERE) == "post:5"
    assert bucket_of_request("GET", "/api/v10/channels/5/messages/7") is None
    assert bucket_of_request("POST", "/api/v10/interactions/5/a.b-c/callback") is None
    assert bucket_of_request("DELETE", "/api/v10/channels/5/messages/7") is None


@pytest.mark.asyncio
async def test_the_policy_follows_the_rate_limit_headers() -> None:
    async def answer(request: web.Request) -> web.Response:
        left = request.query.get("left")
        limits_sent = (
            {"X-RateLimit-Limit": "3", "X-RateLimit-Remaining": left, "X-RateLimit-Reset-After": "4.5"} if left else {}
        )
        return web.json_response({}, headers={name: str(value) for name, value in limits_sent.items()})

    app = web.Application()
    app.router.add_route("*", "/channels/5/messages/7", answer)
    edits: EditPolicy[Any] = EditPolicy()
    edits.offer(Edit("a", "channel:5", "preview", None, 0.0))
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession(trace_configs=[trace_rate_limits(edits, lambda: 1000.0)]) as session,
    ):
        address = server.make_url("/channels/5/messages/7")
        await session.patch(address)
        await session.get(address, params={"left": "0"})
        assert edits.next_wake(1000.0) == 1000.0, "neither missing headers nor another method set a limit"
        await session.patch(address, params={"left": "2"})
        assert edits.next_wake(1000.0) == 1000.0
        assert edits.preview_interval("channel:5") == pytest.approx(5.0 / 2)
        await session.patch(address, params={"left": "0"})
        assert edits.next_wake(1000.0) == 1004.5


@pytest.mark.parametrize(
    "header_values",
    [
        *(("3", "2", after) for after in ("", "nan", "inf", "-1", None)),
        ("three", "2", "1"),
        ("3", "-1", "1"),
        ("0", "0", "1"),
    ],
)
def test_senseless_headers_are_ignored(header_values: tuple[str | None, ...]) -> None:
    names = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset-After")
    assert (
        parse_limits({name: value for name, value in zip(names, header_values, strict=True) if value is not None})
        is None
    )
    assert parse_limits(dict(zip(names, ("3", "2", "0.5"), strict=True))) == (3, 2, 0.5)
