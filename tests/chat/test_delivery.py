"""Where the last word about a job goes: one answer, one notice that pings, one direct message; never two of a kind."""

from __future__ import annotations

import asyncio
from typing import Any

import discord
import pytest

from bot.chat.post import progress
from bot.views import Member
from chat.jobs import begun, noted, stored

pytestmark = pytest.mark.asyncio


async def pinging(world: Any, seconds: int = 0) -> None:
    """From now on every job is a long one."""
    admin = Member("discord:1", "admin", f"discord:{world.guild.id}", admin=True)
    await world.house.desk.administration.set(admin, "guild", "", "long_ping", str(seconds))


async def prefers(world: Any, **chosen: str) -> None:
    for name, text in chosen.items():
        await world.house.desk.preferences.prefer(f"discord:{world.alice.id}", name, text)


def letters(world: Any) -> list[discord.Message]:
    """What lies in the conversation with Alice."""
    return world.alice.user.dm_channel.history()


def pictured(message: Any) -> bool:
    return any(each.filename.startswith("darkroom-") for each in message.attachments)


async def job_of(world: Any) -> str:
    (view,) = await world.studio.recent()
    return view.id


async def test_a_long_job_ends_with_a_new_message_that_pings_its_author_alone(open_world: Any) -> None:
    async with open_world() as world:
        await pinging(world)
        result = await begun(world)
        world.painter.going.set()
        await noted(world)
        answer, notice = sorted(world.channel.history(), key=lambda each: each.id)
        assert answer.id == result.response.id
        assert notice.content.startswith(f"<@{world.alice.id}>")
        assert [each.id for each in notice.mentions] == [world.alice.id]
        assert not notice.mention_everyone
        assert pictured(notice)
        assert notice.attachments[0].description == "red apple"
        assert world.labels(notice)[0] == "U1"
        assert notice.reference
        assert notice.reference.message_id == answer.id
        assert "\n" not in answer.content
        assert f"/{world.channel.id}/{notice.id}" in answer.content
        assert answer.attachments == []
        assert answer.components == []
        assert answer.mentions == []
        posts = [each.json for each in world.env.http_requests if each.method == "POST" and "/channels" in each.path]
        assert [post["enforce_nonce"] for post in posts] == [True]
        assert len(posts[0]["nonce"]) <= 25
        assert posts[0]["allowed_mentions"] == {"parse": [], "users": [world.alice.id]}
        known = await world.deliveries.of(await job_of(world))
        assert known["notice"].message == str(notice.id)
        assert await world.deliveries.job_at(str(notice.id)) == await world.deliveries.job_at(str(answer.id))


async def test_a_short_job_and_one_whose_author_wants_no_ping_end_where_they_are(open_world: Any) -> None:
    async with open_world() as world:
        await world.ended(await world.alice.slash(world.channel, "imagine", prompt="red apple"))
        await pinging(world)
        await prefers(world, ping="off")
        final = await world.ended(await begun_and_freed(world))
        await noted(world)
        assert pictured(final)
        assert len(world.channel.history()) == 2
        assert world.env.backend.dm_channels == {}


async def begun_and_freed(world: Any) -> Any:
    result = await begun(world)
    world.painter.going.set()
    return result


async def test_a_long_job_that_fails_says_so_where_its_author_sees_it(open_world: Any) -> None:
    async with open_world() as world:
        await pinging(world)
        await world.alice.slash(world.channel, "imagine", prompt="impossible apple")
        await noted(world)
        answer, notice = sorted(world.channel.history(), key=lambda each: each.id)
        assert "out of bounds" in notice.content
        assert [each.id for each in notice.mentions] == [world.alice.id]
        assert "It failed" in answer.content


async def test_where_the_bot_may_not_post_the_answer_shows_all(open_world: Any) -> None:
    async with open_world() as world:
        await pinging(world)
        quiet = world.guild.create_text_channel(
            "quiet", overwrites={world.client.user: discord.PermissionOverwrite(send_messages=False)}
        )
        await begun(world, where=quiet)
        world.painter.going.set()
        await noted(world)
        (message,) = quiet.history()
        assert pictured(message)
        notice = (await world.deliveries.of(await job_of(world)))["notice"]
        assert notice.reason == "I am not allowed to write in its channel."
        assert await world.deliveries.undeliverable(f"discord:{world.alice.id}") == {}


async def test_whoever_wishes_has_each_picture_also_in_a_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        await prefers(world, direct="on")
        final = await world.ended(await begun_and_freed(world))
        await noted(world)
        assert pictured(final)
        (letter,) = letters(world)
        assert pictured(letter)
        assert world.labels(letter) == world.labels(final)
        assert "comes to you" not in letter.content


async def vanish(world: Any, how: str, message: int) -> None:
    backend = world.env.backend
    if how == "message":
        backend.delete_message(world.channel.id, message)
        return
    code, status = {"channel": (10003, 404), "access": (50001, 403), "archived": (50083, 400)}[how]
    world.env.inject_error("*", f"/channels/{world.channel.id}*", status=status, code=code, message=how, times=None)
    world.env.inject_error("*", "/webhooks/*", status=404, code=10015, message="Unknown Webhook", times=None)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("message", "message was deleted"),
        ("channel", "channel was deleted"),
        ("access", "no longer see its channel"),
        ("archived", "thread is archived"),
    ],
)
async def test_what_cannot_be_shown_in_its_place_goes_to_its_author(open_world: Any, how: str, said: str) -> None:
    async with open_world() as world:
        result = await begun(world)
        await vanish(world, how, result.response.id)
        world.painter.going.set()
        await noted(world)
        (letter,) = letters(world)
        assert pictured(letter)
        assert said in letter.content
        assert "So it comes to you." in letter.content
        assert [each for each in world.channel.history() if pictured(each)] == []


async def test_with_closed_direct_messages_it_waits_with_its_reason(open_world: Any) -> None:
    async with open_world() as world:
        result = await begun(world)
        await vanish(world, "message", result.response.id)
        closed = {"status": 403, "code": 50007, "message": "Cannot send messages to this user", "times": None}
        world.env.inject_error("POST", "/channels/*/messages", **closed)
        world.painter.going.set()
        await noted(world)
        waiting = await world.deliveries.undeliverable(f"discord:{world.alice.id}")
        assert waiting == {await job_of(world): "Its message was deleted. Your direct messages are closed to me."}
        after = await world.bob.slash(world.channel, "queue")
        assert after.ephemeral, "the courier and the bot live on"


async def test_an_answer_that_never_came_is_made_good_by_a_new_message(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "GRACE", 0.3)
    async with open_world() as world:
        world.env.inject_error("POST", "/interactions/*", status=404, code=10062, message="Unknown interaction")
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await noted(world)
        (message,) = world.channel.history()
        assert pictured(message)
        assert [each.id for each in message.mentions] == [world.alice.id]


async def private(world: Any) -> None:
    """From now on the results are their authors' alone."""
    await prefers(world, results="private")


async def test_a_private_result_is_for_its_authors_eyes_alone(open_world: Any) -> None:
    async with open_world() as world:
        await private(world)
        result = await begun(world)
        assert result.ephemeral
        world.painter.going.set()
        await noted(world)
        assert world.channel.history() == [], "ephemeral"
        message = stored(world, world.channel.id, result.response.id)
        assert message.attachments[0]["filename"].startswith("darkroom-")
        assert not any(each.path.startswith("/channels/") for each in world.env.http_requests)


@pytest.mark.parametrize("how", ["old", "expired"])
async def test_a_private_result_that_comes_late_goes_to_a_direct_message(open_world: Any, how: str) -> None:
    async with open_world() as world:
        await private(world)
        await begun(world)
        if how == "old":
            await world.deliveries.moved(await job_of(world), token_until="0")
        else:
            dead = {"status": 401, "code": 50027, "message": "Invalid Webhook Token", "times": None}
            world.env.inject_error("PATCH", "/webhooks/*", **dead)
        world.painter.going.set()
        await noted(world)
        (letter,) = letters(world)
        assert pictured(letter)
        assert "15 minutes" in letter.content
        assert world.channel.history() == []


async def test_a_long_private_job_pings_in_the_direct_messages(open_world: Any) -> None:
    async with open_world() as world:
        await pinging(world)
        await private(world)
        result = await begun_and_freed(world)
        await noted(world)
        (letter,) = letters(world)
        assert pictured(letter)
        assert world.channel.history() == []
        assert stored(world, world.channel.id, result.response.id).attachments


@pytest.mark.parametrize("likely", [True, False])
async def test_a_slow_private_answer_is_never_public(open_world: Any, monkeypatch: Any, likely: bool) -> None:
    async with open_world() as world:
        await private(world)
        if not likely:  # the quick look says public, the ticket knows better
            monkeypatch.setattr("bot.chat.answer._likely_private", says_no)
        ask = world.studio.imagine

        async def slow(*given: Any, **named: Any) -> Any:
            await asyncio.sleep(2.0)
            return await ask(*given, **named)

        monkeypatch.setattr(world.studio, "imagine", slow)
        await world.alice.slash(world.channel, "imagine", prompt="red apple")
        await noted(world)
        assert world.channel.history() == []
        shown = [each for each in world.env.backend.messages[world.channel.id].values() if each.attachments]
        assert [each.is_ephemeral for each in shown] == [True]


async def says_no(_: object) -> bool:
    return False


async def test_a_token_that_ends_during_a_slow_upload_hands_over_to_the_channel(open_world: Any) -> None:
    async with open_world() as world:
        result = await begun(world)
        request, times = world.client.http.request, [0]

        async def slow(route: Any, **named: Any) -> Any:
            if route.method == "PATCH" and "/webhooks/" in route.url and named.get("files"):
                times[0] += 1
                await asyncio.sleep(0.5)
                error = discord.HTTPException(_Response(), {"code": 50027, "message": "Invalid Webhook Token"})
                raise error
            return await request(route, **named)

        world.client.http.request = slow
        world.painter.going.set()
        assert pictured(await world.ended(result))
        await noted(world)
        assert times == [1]
        assert len(world.channel.history()) == 1


class _Response(Any):
    status, reason = 401, "Unauthorized"
