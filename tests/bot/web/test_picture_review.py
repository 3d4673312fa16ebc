"""Held pictures over HTTP: refused with their reason, blurred in the grid, and not cached until shown."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from PIL import Image

from bot.domain.dto import Member
from bot.services.rule_admin import RuleAdmin
from bot.web.middleware import GUILD, SESSION_TOKENS

if TYPE_CHECKING:
    from tests.bot.web.conftest import OpenRoom, Room

pytestmark = pytest.mark.asyncio
HELD_SENTENCE = "Picture 2 is held by the picture check until a moderator has looked at it."


async def check_all(room: Room, verdicts: dict[int, Any]) -> None:
    """Sets the rule that pictures are checked, and the worker's verdicts."""
    room.drawers[0].checks, room.drawers[0].verdicts = True, verdicts
    rules = RuleAdmin(room.desk.jobs._store, room.desk.jobs._cancelling.cancel, limits=room.settings.limits)
    await rules.set_rule(Member("local:ada", "Ada", GUILD, is_admin=True), "guild", "", "check", "on")


def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


async def fetch(room: Room, path: str) -> tuple[int, str, bytes]:
    """Status, `Cache-Control` and body."""
    async with room.client.get(room.url + path) as answer:
        return answer.status, answer.headers.get("Cache-Control", ""), await answer.read()


def edges(grid: bytes) -> list[bool]:
    """Whether each quarter of a grid has the edge of a disc in it."""
    with Image.open(io.BytesIO(grid)) as image:
        picture = image.convert("L")
    half = picture.width // 2
    tiles = [picture.crop((x, y, x + half, y + half)) for y in (0, half) for x in (0, half)]
    steps = [[tile.getpixel((x, half // 2)) for x in range(24, half - 24, 24)] for tile in tiles]
    return [max(abs(a - b) for a, b in pairwise(row)) > 60 for row in steps]  # pyright: ignore


@pytest.mark.slow
async def test_a_held_picture_is_refused_and_the_others_are_served(room: Room) -> None:
    await check_all(room, {1: "flagged"})
    job = await room.end_of(await room.imagine("terrier"))
    assert [shot["held"] for shot in job["pictures"]] == ["", HELD_SENTENCE, "", ""]
    status, reply = await room.ask("GET", job["pictures"][1]["url"])
    assert (status, reply["error"]) == (403, HELD_SENTENCE)
    for n in (0, 2, 3):
        assert (await fetch(room, job["pictures"][n]["url"]))[0] == 200
    for verb in ("vary", "upscale"):
        assert await room.ask("POST", f"/api/jobs/{job['id']}/{verb}/2") == (403, {"error": HELD_SENTENCE})


@pytest.mark.slow
async def test_a_held_picture_is_blurred_in_the_grid_until_it_is_shown(room: Room) -> None:
    await check_all(room, {1: "flagged"})
    job = await room.end_of(await room.imagine("terrier"))
    status, caching, grid = await fetch(room, job["grid"])
    assert (status, caching) == (200, "no-store")
    assert edges(grid) == [True, False, True, True]
    assert (await fetch(room, job["film"]))[1] == "no-store"
    address = f"/api/jobs/{job['id']}/pictures/2"
    status, caching, content = await fetch(room, f"{address}/held.png")
    assert (status, caching) == (200, "no-store")
    assert content.startswith(b"\x89PNG")
    status, reply = await room.ask("POST", f"{address}/show")
    assert (status, reply["pictures"][1]["held"]) == (200, "")
    status, caching, grid = await fetch(room, job["grid"])
    assert "immutable" in caching
    assert edges(grid) == [True] * 4
    assert (await fetch(room, job["pictures"][1]["url"]))[0] == 200


async def test_a_job_with_only_held_pictures_has_no_film(room: Room) -> None:
    await check_all(room, {0: "flagged"})
    job = await room.end_of(await room.imagine("terrier", count=1))
    assert (job["film"], job["keyframes"]) == (None, None)
    status, reply = await room.ask("GET", f"/api/jobs/{job['id']}/keyframes")
    assert status == 403
    assert "no film" in reply["error"]


async def test_the_owner_hides_a_held_picture_and_cannot_decide_about_others(room: Room) -> None:
    await check_all(room, {1: "flagged"})
    job = await room.end_of(await room.imagine("terrier"))
    assert job["can_review"]
    address = f"/api/jobs/{job['id']}/pictures"
    status, reply = await room.ask("POST", f"{address}/2/hide")
    assert (status, reply["pictures"][1]["held"]) == (200, "Picture 2 stays hidden: a moderator has looked at it.")
    assert await room.ask("POST", f"{address}/1/show") == (404, {"error": "Picture 1 is not held."})
    assert await room.ask("GET", f"{address}/1/held.png") == (404, {"error": "Picture 1 is not held."})


async def test_guests_cannot_decide_about_held_pictures(open_room: OpenRoom) -> None:
    async with open_room(host="0.0.0.0") as room, open_session() as owner, open_session() as guest:
        gate = room.app[SESSION_TOKENS]
        for browser, token in (
            (owner, gate.create_invitation(for_operator=True)),
            (guest, gate.create_invitation(for_operator=False)),
        ):
            async with browser.post(f"{room.url}/api/entrance", json={"token": token}) as answer:
                assert answer.status == 201
        await check_all(room, {0: "flagged"})
        async with guest.post(f"{room.url}/api/jobs", json={"prompt": "terrier", "count": 1}) as answer:
            job = f"{room.url}/api/jobs/{(await answer.json())['id']}"
        async with guest.get(f"{job}/events") as answer:
            assert "event: finished" in await answer.text()  # the stream ends with its job
        for method, what in (("GET", "held.png"), ("POST", "show"), ("POST", "hide")):
            async with guest.request(method, f"{job}/pictures/1/{what}") as answer:
                assert answer.status == 403
                assert "moderators" in (await answer.json())["error"]
        async with guest.get(job) as answer:
            assert not (await answer.json())["can_review"]
        async with owner.post(f"{job}/pictures/1/show") as answer:
            assert answer.status == 200
        async with guest.get(f"{job}/pictures/1.png") as answer:
            assert answer.status == 200
