"""Held pictures over HTTP: refused with their reason, blurred in the grid, and not cached until shown."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from bot.domain.dto import Member
from bot.services.rule_admin import RuleAdmin
from bot.web.middleware import GUILD, SESSION_TOKENS
from shared.web_server import open_session

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio
HELD_SENTENCE = "Picture 2 is held by the picture check until a moderator has looked at it."


async def check_all(server: WebServer, verdicts: dict[int, Any]) -> None:
    """Sets the rule that pictures are checked, and the worker's verdicts."""
    server.workers[0].has_picture_check = True
    server.workers[0].verdicts = verdicts
    rules = RuleAdmin(
        server.services.gallery._store, server.services.job_control.canceller.cancel, limits=server.settings.limits
    )
    await rules.set_rule(Member("local:ada", "Ada", GUILD, is_admin=True), "guild", "", "check", "on")


async def fetch(server: WebServer, path: str) -> tuple[int, str, bytes]:
    """Fetches a path; returns status, `Cache-Control` and body."""
    async with server.client.get(server.url + path) as answer:
        return answer.status, answer.headers.get("Cache-Control", ""), await answer.read()


def edges(grid: bytes) -> list[bool]:
    """Tells for each quarter of a grid whether it has the edge of a disc."""
    with Image.open(io.BytesIO(grid)) as image:
        picture = image.convert("L")
    half = picture.width // 2
    tiles = [picture.crop((x, y, x + half, y + half)) for y in (0, half) for x in (0, half)]
    steps = [[tile.getpixel((x, half // 2)) for x in range(24, half - 24, 24)] for tile in tiles]
    return [max(abs(a - b) for a, b in pairwise(row)) > 60 for row in steps]  # pyright: ignore


@pytest.mark.slow
async def test_a_held_picture_is_refused_and_the_others_are_served(server: WebServer) -> None:
    await check_all(server, {1: "flagged"})
    job = await server.wait_for_end(await server.imagine("terrier"))
    assert [picture["held"] for picture in job["pictures"]] == ["", HELD_SENTENCE, "", ""]
    status, reply = await server.request_json("GET", job["pictures"][1]["url"])
    assert (status, reply["error"]) == (403, HELD_SENTENCE)
    for n in (0, 2, 3):
        assert (await fetch(server, job["pictures"][n]["url"]))[0] == 200
    for verb in ("vary", "upscale"):
        assert await server.request_json("POST", f"/api/jobs/{job['id']}/{verb}/2") == (403, {"error": HELD_SENTENCE})


@pytest.mark.slow
async def test_a_held_picture_is_blurred_in_the_grid_until_it_is_shown(server: WebServer) -> None:
    await check_all(server, {1: "flagged"})
    job = await server.wait_for_end(await server.imagine("terrier"))
    status, cache_header, grid = await fetch(server, job["grid"])
    assert (status, cache_header) == (200, "no-store")
    assert edges(grid) == [True, False, True, True]
    assert (await fetch(server, job["film"]))[1] == "no-store"
    address = f"/api/jobs/{job['id']}/pictures/2"
    status, cache_header, content = await fetch(server, f"{address}/held.png")
    assert (status, cache_header) == (200, "no-store")
    assert content.startswith(b"\x89PNG")
    status, reply = await server.request_json("POST", f"{address}/show")
    assert (status, reply["pictures"][1]["held"]) == (200, "")
    status, cache_header, grid = await fetch(server, job["grid"])
    assert "immutable" in cache_header
    assert edges(grid) == [True] * 4
    assert (await fetch(server, job["pictures"][1]["url"]))[0] == 200


async def test_a_job_with_only_held_pictures_has_no_film(server: WebServer) -> None:
    await check_all(server, {0: "flagged"})
    job = await server.wait_for_end(await server.imagine("terrier", count=1))
    assert (job["film"], job["keyframes"]) == (None, None)
    status, reply = await server.request_json("GET", f"/api/jobs/{job['id']}/keyframes")
    assert status == 403
    assert "no film" in reply["error"]


async def test_the_owner_hides_a_held_picture_and_cannot_decide_about_others(server: WebServer) -> None:
    await check_all(server, {1: "flagged"})
    job = await server.wait_for_end(await server.imagine("terrier"))
    assert job["can_review"]
    address = f"/api/jobs/{job['id']}/pictures"
    status, reply = await server.request_json("POST", f"{address}/2/hide")
    assert (status, reply["pictures"][1]["held"]) == (200, "Picture 2 stays hidden: a moderator has looked at it.")
    assert await server.request_json("POST", f"{address}/1/show") == (404, {"error": "Picture 1 is not held."})
    assert await server.request_json("GET", f"{address}/1/held.png") == (404, {"error": "Picture 1 is not held."})


async def test_guests_cannot_decide_about_held_pictures(open_server: OpenServer) -> None:
    async with open_server(host="0.0.0.0") as server, open_session() as owner, open_session() as guest:
        gate = server.app[SESSION_TOKENS]
        for browser, token in (
            (owner, gate.create_invitation(for_operator=True)),
            (guest, gate.create_invitation(for_operator=False)),
        ):
            async with browser.post(f"{server.url}/api/entrance", json={"token": token}) as answer:
                assert answer.status == 201
        await check_all(server, {0: "flagged"})
        async with guest.post(f"{server.url}/api/jobs", json={"prompt": "terrier", "count": 1}) as answer:
            job = f"{server.url}/api/jobs/{(await answer.json())['id']}"
        async with guest.get(f"{job}/events") as answer:
            assert "event: finished" in await answer.text()  # the stream ends with its job
        for method, path in (("GET", "held.png"), ("POST", "show"), ("POST", "hide")):
            async with guest.request(method, f"{job}/pictures/1/{path}") as answer:
                assert answer.status == 403
                assert "moderators" in (await answer.json())["error"]
        async with guest.get(job) as answer:
            assert not (await answer.json())["can_review"]
        async with owner.post(f"{job}/pictures/1/show") as answer:
            assert answer.status == 200
        async with guest.get(f"{job}/pictures/1.png") as answer:
            assert answer.status == 200
