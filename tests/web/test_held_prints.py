"""Held pictures over HTTP: refused with their reason, blurred in the grid, cached by nobody until shown."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from bot.administration import Administration
from bot.review import Review
from bot.views import Member
from bot.web.door import GUILD

if TYPE_CHECKING:
    from tests.web.conftest import Room

pytestmark = pytest.mark.asyncio
SAID = "Picture 2 is held by the picture check until a moderator has looked at it."


async def check_all(room: Room, verdicts: dict[int, Any]) -> None:
    """The room's rule is that pictures are checked, and a worker can, with these verdicts."""
    room.drawers[0].checks, room.drawers[0].verdicts = True, verdicts
    rules = Administration(room.studio._store, room.studio._cancelling.cancel, limits=room.settings.limits)
    await rules.set(Member("local:ada", "Ada", GUILD, admin=True), "guild", "", "check", "on")


async def fetched(room: Room, path: str) -> tuple[int, str, bytes]:
    """Status, how long it may be kept, and the body."""
    async with room.client.get(room.url + path) as answer:
        return answer.status, answer.headers.get("Cache-Control", ""), await answer.read()


def edges(grid: bytes) -> list[bool]:
    """Whether each quarter of a grid has the edge of a disc in it."""
    with Image.open(io.BytesIO(grid)) as opened:
        picture = opened.convert("L")
    half = picture.width // 2
    tiles = [picture.crop((x, y, x + half, y + half)) for y in (0, half) for x in (0, half)]
    steps = [[tile.getpixel((x, half // 2)) for x in range(24, half - 24, 24)] for tile in tiles]
    return [max(abs(a - b) for a, b in pairwise(row)) > 60 for row in steps]  # pyright: ignore


async def test_a_held_picture_is_refused_and_the_others_are_there(room: Room) -> None:
    await check_all(room, {1: "flagged"})
    job = await room.end_of(await room.imagine("terrier"))
    assert [shot["held"] for shot in job["pictures"]] == ["", SAID, "", ""]
    status, said = await room.ask("GET", job["pictures"][1]["url"])
    assert (status, said["error"]) == (403, SAID)
    for n in (0, 2, 3):
        assert (await fetched(room, job["pictures"][n]["url"]))[0] == 200
    for verb in ("vary", "upscale"):
        assert await room.ask("POST", f"/api/jobs/{job['id']}/{verb}/2") == (403, {"error": SAID})


async def test_a_grid_with_a_held_picture_is_blurred_there_until_it_is_shown(room: Room) -> None:
    await check_all(room, {1: "flagged"})
    job = await room.end_of(await room.imagine("terrier"))
    status, kept, grid = await fetched(room, job["grid"])
    assert (status, kept) == (200, "no-store")
    assert edges(grid) == [True, False, True, True]
    assert (await fetched(room, job["film"]))[1] == "no-store"
    review = Review(room.studio._store, room.studio._register, room.studio._gallery)
    await review.decide(job["id"], 1, Member("local:mo", "Mo", GUILD, moderator=True), show=True)
    status, kept, grid = await fetched(room, job["grid"])
    assert "immutable" in kept
    assert edges(grid) == [True] * 4
    assert (await fetched(room, job["pictures"][1]["url"]))[0] == 200


async def test_a_job_that_is_held_whole_has_no_film(room: Room) -> None:
    await check_all(room, {0: "flagged"})
    job = await room.end_of(await room.imagine("terrier", count=1))
    assert (job["film"], job["rungs"]) == (None, None)
    status, said = await room.ask("GET", f"/api/jobs/{job['id']}/rungs")
    assert status == 403
    assert "no film" in said["error"]
