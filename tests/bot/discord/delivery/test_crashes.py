"""The bot dies before and after each request and each write about a final card. It sends nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from simcord.http.client import FakeHTTPClient

from bot.domain.dto import Member

pytestmark = pytest.mark.asyncio

WRITES = ("add_destination", "update_address", "mark_delivered", "mark_lost")
MAX_POINTS = 80  # crash points of one job's end
FIRST_POST = 8  # a point shortly before the picture's own
ROUNDS = 3  # concurrent tasks change their order: a round may hit a point twice and miss another


class CrashPoint:
    """Counts the courier's actions and blocks for ever at one of them: there the test kills it."""

    def __init__(self, point: int) -> None:
        self.actions_left = point
        self.has_crashed = asyncio.Event()
        self.crashed_at = ""

    async def run(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        await self._count(f"before {name}")
        result = await call()
        await self._count(f"after {name}")
        return result

    async def _count(self, name: str) -> None:
        self.actions_left -= 1
        if self.actions_left == 0:
            self.crashed_at = name
            self.has_crashed.set()
        if self.actions_left <= 0:
            await asyncio.Event().wait()


def patch_call(owner: Any, name: str, crash_points: list[CrashPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run calls of `owner.name` through the last crash point, if there is one."""
    call = getattr(owner, name)

    async def call_through_crash_point(*args: Any, **kwargs: Any) -> Any:
        if not crash_points:
            return await call(*args, **kwargs)
        label = f"{args[1].method} {args[1].path} {args[1].channel_id or ''}".strip() if name == "request" else name
        return await crash_points[-1].run(label, lambda: call(*args, **kwargs))

    monkeypatch.setattr(owner, name, call_through_crash_point)


def with_picture(messages: list[Any], job: str) -> list[Any]:
    return [each for each in messages if any(job in one.filename for one in each.attachments)]


async def wait_until_delivered(world: Any) -> None:
    while await world.deliveries.list_undelivered("discord"):
        await asyncio.sleep(0.02)


async def end_job_with_crash(world: Any, crash_points: list[CrashPoint], point: int, delete_answer: bool) -> str:
    """End a job while its courier dies at that point and restarts. Return where it died, empty if it did not."""
    world.painter.pause_step = 3
    result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
    await world.wait_until(lambda: "step 2 of 20" in world.message(result.response.id).content)
    (job,) = [view.id for view in await world.services.job_views.load_recent() if view.state == "running"]
    if delete_answer:
        world.env.backend.delete_message(world.channel.id, result.response.id)
    crash_points.append(CrashPoint(point))
    world.painter.pause_step = None
    world.painter.step_gate.set()
    waiters = [
        asyncio.ensure_future(wait_until_delivered(world)),
        asyncio.ensure_future(crash_points[-1].has_crashed.wait()),
    ]
    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED, timeout=40)
    for each in waiters:
        each.cancel()
    last = crash_points.pop()
    if last.has_crashed.is_set():
        while (await world.services.job_views.load_view(job)).state != "finished":
            await asyncio.sleep(0.02)
        await world.restart()
        async with asyncio.timeout(40):
            await wait_until_delivered(world)
    direct_messages = with_picture(world.alice.user.dm_channel.history(), job)
    in_channel = with_picture(world.channel.history(), job)
    assert len(direct_messages) == 1, f"{last.crashed_at}: {len(direct_messages)} direct messages"
    assert len(in_channel) == (0 if delete_answer else 1), (
        f"{last.crashed_at}: {len(in_channel)} messages in the channel"
    )
    if not delete_answer:
        assert in_channel[0].content.startswith(f"<@{world.alice.id}>"), last.crashed_at
        answer = world.message(result.response.id)
        assert str(in_channel[0].id) in answer.content, f"{last.crashed_at}: the answer points to the notice"
    return last.crashed_at


async def prepare_crashes(
    world: Any, crash_points: list[CrashPoint], monkeypatch: pytest.MonkeyPatch, delete_answer: bool
) -> None:
    services = world.app.services
    admin = Member("discord:1", "admin", f"discord:{world.guild.id}", is_admin=True)
    await services.rule_admin.set_rule(admin, "guild", "", "long_ping", "0")
    # A direct message replaces the deleted one anyway.
    preference = ("ping", "off") if delete_answer else ("direct", "on")
    await services.preferences.set_preference(f"discord:{world.alice.id}", *preference)
    for name in WRITES:
        patch_call(services.deliveries, name, crash_points, monkeypatch)
    patch_call(FakeHTTPClient, "request", crash_points, monkeypatch)


async def test_a_picture_that_the_dying_bot_has_posted_is_not_posted_again(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        crash_points = list[CrashPoint]()
        await prepare_crashes(world, crash_points, monkeypatch, delete_answer=True)
        crashed_at = "nowhere"
        point = FIRST_POST
        while crashed_at and not crashed_at.startswith("after POST /channels"):
            crashed_at = await end_job_with_crash(world, crash_points, point, delete_answer=True)
            point += 1
        assert crashed_at


@pytest.mark.slow
@pytest.mark.parametrize("delete_answer", [False, True])
@pytest.mark.timeout(600)
async def test_wherever_the_bot_dies_each_destination_gets_its_picture_once(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, delete_answer: bool
) -> None:
    async with open_world() as world:
        crash_points = list[CrashPoint]()
        await prepare_crashes(world, crash_points, monkeypatch, delete_answer)
        crashes = list[str]()
        posts = set[str]()
        for _ in range(ROUNDS):
            for point in range(1, MAX_POINTS):
                crashed_at = await end_job_with_crash(world, crash_points, point, delete_answer)
                if not crashed_at:
                    break
                crashes.append(crashed_at)
            posts = {crashed_at for crashed_at in crashes if "POST" in crashed_at}
            if len(posts) >= (4 if delete_answer else 6):
                break
        assert len(crashes) >= (10 if delete_answer else 20), crashes
        assert len(posts) >= (4 if delete_answer else 6), crashes
