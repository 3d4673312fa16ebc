"""Reactions: an envelope sends the pictures, a cross cancels or deletes, and all others cost no request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import discord
import pytest
from simcord.builders import ChannelHandle

from bot.discord.components.reactions import MAX_REACTIONS, WINDOW_SECONDS, ReactionLimiter
from bot.domain.errors import UserError
from shared.discord_jobs import ENVELOPE, create_moderator, direct_messages, imagine, make_reaction

pytestmark = pytest.mark.asyncio

CROSS = "❌"


async def test_an_envelope_sends_the_pictures_to_the_member_who_reacts(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7)
        (view,) = await world.services.job_views.load_recent()
        await world.bob.react(grid, ENVELOPE)
        (direct_message,) = await world.wait_until(lambda: direct_messages(world.bob))
        assert [one.filename for one in direct_message.attachments] == [
            f"darkroom-{view.id}-{n}.png" for n in (1, 2, 3, 4)
        ]
        assert [one.description for one in direct_message.attachments] == ["red apple"] * 4
        for part in ("red apple", "alice", "Seed: 7", view.id, str(grid.id)):
            assert part in direct_message.content
        assert world.env.backend.cdn.get(
            direct_message.attachments[2].url
        ) == await world.services.gallery.read_picture(view.id, 2)
        assert direct_messages(world.alice) == []


async def test_a_private_picture_goes_to_its_author_alone(open_world: Any) -> None:
    async with open_world() as world:
        await world.client.services.preferences.set_preference(f"discord:{world.alice.id}", "results", "private")
        result = await world.alice.slash(world.channel, "imagine", prompt="red apple")
        (view,) = await world.services.job_views.load_recent()
        await world.wait_until(lambda: world.painter.finished_jobs)
        await world.wait_until(lambda: "Cancel" not in world.labels(result.response))
        message = result.response.id
        for actor in (world.bob, create_moderator(world)):
            await world.client.reactions.handle(make_reaction(world, message, actor, ENVELOPE))
            assert direct_messages(actor) == []
        await world.client.reactions.handle(make_reaction(world, message, world.alice, ENVELOPE))
        assert view.id in direct_messages(world.alice)[0].content


async def test_the_authors_cross_cancels_a_running_job_and_deletes_a_finished_one(open_world: Any) -> None:
    async with open_world() as world:
        world.painter.pause_step = 3
        running_message = (await world.alice.slash(world.channel, "imagine", prompt="red apple")).response
        await world.bob.react(running_message.message, CROSS)
        (view,) = await world.services.job_views.load_recent()
        assert not view.is_cancelling
        await world.alice.react(running_message.message, CROSS)
        await world.wait_until(lambda: "ancelled" in world.message(running_message.id).content)
        world.painter.pause_step = None
        world.painter.step_gate.set()

        grid = await imagine(world, seed=7)
        view = (await world.services.job_views.load_recent())[0]
        await world.bob.react(grid, CROSS)
        assert (await world.services.job_views.load_view(view.id)).deleted_at is None
        await world.alice.react(grid, CROSS)
        await world.wait_until(lambda: grid.id not in {one.id for one in world.channel.history()})
        with pytest.raises(UserError, match="deleted"):
            await world.services.job_views.load_view(view.id)


async def test_a_moderators_cross_deletes_too(open_world: Any) -> None:
    async with open_world() as world:
        moderator_permissions = discord.PermissionOverwrite(manage_messages=True)
        world.channel = world.guild.create_text_channel("bob's room", overwrites={world.bob: moderator_permissions})
        grid = await imagine(world, seed=7)
        moderator = create_moderator(world)
        await world.bob.react(grid, CROSS)
        assert (await world.services.job_views.load_recent())[0].deleted_at is None, (
            "a permission in one channel makes no moderator of the server"
        )
        await moderator.react(grid, CROSS)
        await world.wait_until(lambda: grid.id not in {one.id for one in world.channel.history()})


async def test_other_emoji_other_messages_and_other_bots_cost_nothing(
    open_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7)
        bobs_message = await world.bob.send(world.channel, "hello")
        looked_up: list[str] = []
        job_at = world.deliveries.find_job

        async def count_lookup(message: str) -> str | None:
            looked_up.append(message)
            return await job_at(message)

        monkeypatch.setattr(type(world.deliveries), "find_job", lambda _, message: count_lookup(message))
        before = len(world.env.http_requests)
        for emoji in (CROSS, ENVELOPE):
            event = make_reaction(world, bobs_message.id, world.alice, emoji, message_author_id=world.bob.id)
            await world.client.reactions.handle(event)
        await world.alice.react(grid, "🎃")
        other_bot = world.guild.add_member(world.env.create_user("robot", bot=True))
        await other_bot.react(grid, CROSS)
        assert looked_up == [], "the event says whose message it is"
        reaction_without_author = make_reaction(world, bobs_message.id, world.alice, CROSS, message_author_id=None)
        await world.client.reactions.handle(reaction_without_author)
        assert looked_up == [str(bobs_message.id)]
        assert len(world.env.http_requests) == before
        assert (await world.services.job_views.load_recent())[0].deleted_at is None


async def test_of_a_hundred_reactions_only_the_first_few_are_handled(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7, count=1)
        for _ in range(100):
            await world.client.reactions.handle(make_reaction(world, grid.id, world.bob, ENVELOPE))
        assert len(direct_messages(world.bob)) == MAX_REACTIONS


async def test_the_reaction_limit_resets_and_is_per_member() -> None:
    now = [0.0]
    limiter = ReactionLimiter(lambda: now[0])
    assert [limiter.allow(1) for _ in range(MAX_REACTIONS + 1)] == [*[True] * MAX_REACTIONS, False]
    assert limiter.allow(2)
    now[0] = WINDOW_SECONDS + 0.1
    assert limiter.allow(1)


async def test_closed_direct_messages_are_logged_once(open_world: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7, count=1)
        world.env.inject_error(
            "POST",
            "/channels/*/messages",
            status=403,
            code=50007,
            message="Cannot send messages to this user",
            times=None,
        )
        with caplog.at_level(logging.INFO, "bot.discord.components.reactions"):
            for _ in range(3):
                await world.client.reactions.handle(make_reaction(world, grid.id, world.bob, ENVELOPE))
        assert caplog.text.count("could not be sent") == 1
        assert direct_messages(world.bob) == []


async def test_reactions_work_in_a_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        user = world.alice.user
        await user.slash("imagine", prompt="red apple")
        await world.wait_until(lambda: world.painter.finished_jobs)
        await world.wait_until(lambda: "Cancel" not in world.labels(user.dm_channel.history()[-1]))
        message = user.dm_channel.history()[-1]
        await user.set_reaction(message, ENVELOPE, reacted=True)
        await world.wait_until(lambda: len(user.dm_channel.history()) == 2)
        await user.set_reaction(message, CROSS, reacted=True)
        await world.wait_until(lambda: message.id not in {one.id for one in user.dm_channel.history()})


async def test_reactions_work_in_a_thread(open_world: Any) -> None:
    async with open_world() as world:
        thread_data = world.env.backend.create_thread(world.channel.id, "apples", world.alice.id, type=11)
        thread_data.thread_members[world.client.user.id] = world.env.backend.now_iso()
        thread = ChannelHandle(world.env, world.guild, thread_data)
        result = await world.alice.slash(thread, "imagine", prompt="red apple")
        await world.wait_until(lambda: "Cancel" not in world.labels(result.response))
        message = result.response.message
        await world.bob.react(message, ENVELOPE)
        await world.wait_until(lambda: direct_messages(world.bob))
        await world.bob.react(message, CROSS)
        assert message.id in {one.id for one in thread.history()}
        await create_moderator(world).react(message, CROSS)
        await world.wait_until(lambda: message.id not in {one.id for one in thread.history()})


async def test_reactions_from_another_server_have_no_effect(open_world: Any) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7)
        other_guild = world.env.create_guild("Elsewhere")
        other_member = other_guild.add_member(world.env.create_user("dora"))
        await asyncio.sleep(0)
        for emoji in (ENVELOPE, CROSS):
            await world.client.reactions.handle(make_reaction(world, grid.id, other_member, emoji, other_guild))
        assert direct_messages(other_member) == []
        assert (await world.services.job_views.load_recent())[0].deleted_at is None


async def test_an_internal_error_is_logged_and_contained(
    open_world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        grid = await imagine(world, seed=7)

        async def raise_error(*_: object) -> str:
            raise OSError("the disk is away")

        monkeypatch.setattr(type(world.deliveries), "find_job", raise_error)
        await world.alice.react(grid, CROSS)
        assert "a reaction to message" in caplog.text
