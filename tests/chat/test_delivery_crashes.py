"""The bot dies at each request and at each note of a last word, before it is done and after: nothing comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from simcord.http.client import FakeHTTPClient

from bot.views import Member

pytestmark = pytest.mark.asyncio

NOTES = ("add", "moved", "delivered", "lost")
MOST = 80  # points of one job's end
ROUNDS = 3  # what goes on side by side changes places from time to time: a point may be met twice, and another missed


class Dying:
    """Counts what the courier does and stands still for ever at one point: there it is killed."""

    def __init__(self, point: int) -> None:
        self.left = point
        self.dead = asyncio.Event()
        self.at = ""

    async def through(self, name: str, act: Callable[[], Awaitable[Any]]) -> Any:
        await self._pass(f"before {name}")
        done = await act()
        await self._pass(f"after {name}")
        return done

    async def _pass(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.at = name
            self.dead.set()
        if self.left <= 0:
            await asyncio.Event().wait()


def wire(owner: Any, name: str, dying: list[Dying], monkeypatch: pytest.MonkeyPatch) -> None:
    """What `owner` is asked for goes through the last of `dying`, if there is one."""
    act = getattr(owner, name)

    async def asked(*given: Any, **named: Any) -> Any:
        if not dying:
            return await act(*given, **named)
        said = f"{given[1].method} {given[1].path} {given[1].channel_id or ''}".strip() if name == "request" else name
        return await dying[-1].through(said, lambda: act(*given, **named))

    monkeypatch.setattr(owner, name, asked)


def with_picture(messages: list[Any], job: str) -> list[Any]:
    return [each for each in messages if any(job in one.filename for one in each.attachments)]


async def settled(world: Any) -> None:
    while await world.deliveries.owed("discord"):
        await asyncio.sleep(0.02)


async def one_end(world: Any, dying: list[Dying], point: int, vanished: bool) -> str:
    """A job whose courier dies at that point of its end, and comes back; what it died of, empty if it did not."""
    world.painter.stand_at = 3
    result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
    await world.until(lambda: "step 2 of 20" in world.message(result.response.id).content)
    (job,) = [view.id for view in await world.studio.recent() if view.state == "running"]
    if vanished:
        world.env.backend.delete_message(world.channel.id, result.response.id)
    dying.append(Dying(point))
    world.painter.stand_at = None
    world.painter.going.set()
    both = [asyncio.ensure_future(settled(world)), asyncio.ensure_future(dying[-1].dead.wait())]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED, timeout=40)
    for each in both:
        each.cancel()
    last = dying.pop()
    if last.dead.is_set():
        while (await world.studio.view(job)).state != "finished":
            await asyncio.sleep(0.02)
        await world.restart()
        async with asyncio.timeout(40):
            await settled(world)
    letters = with_picture(world.alice.user.dm_channel.history(), job)
    in_channel = with_picture(world.channel.history(), job)
    assert len(letters) == 1, f"{last.at}: {len(letters)} direct messages"
    assert len(in_channel) == (0 if vanished else 1), f"{last.at}: {len(in_channel)} messages in the channel"
    if not vanished:
        assert in_channel[0].content.startswith(f"<@{world.alice.id}>"), last.at
        answer = world.message(result.response.id)
        assert str(in_channel[0].id) in answer.content, f"{last.at}: the answer points to the notice"
    return last.at


@pytest.mark.parametrize("vanished", [False, True])
@pytest.mark.timeout(600)
async def test_whenever_it_dies_each_place_has_its_picture_once(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, vanished: bool
) -> None:
    async with open_world() as world:
        desk, dying = world.house.desk, []
        admin = Member("discord:1", "admin", f"discord:{world.guild.id}", admin=True)
        await desk.administration.set(admin, "guild", "", "long_ping", "0")
        chosen = ("ping", "off") if vanished else ("direct", "on")  # what vanished comes as a direct message anyway
        await desk.preferences.prefer(f"discord:{world.alice.id}", *chosen)
        for name in NOTES:
            wire(desk.deliveries, name, dying, monkeypatch)
        wire(FakeHTTPClient, "request", dying, monkeypatch)
        died, posts = list[str](), set[str]()
        for _ in range(ROUNDS):
            for point in range(1, MOST):
                at = await one_end(world, dying, point, vanished)
                if not at:
                    break
                died.append(at)
            posts = {at for at in died if "POST" in at}
            if len(posts) >= (4 if vanished else 6):
                break
        assert len(died) >= (10 if vanished else 20), died
        assert len(posts) >= (4 if vanished else 6), died
