"""A private thread: the rules of its parent channel hold in it, and its jobs are seen inside it alone."""

from __future__ import annotations

from typing import Any

import pytest
from simcord.builders import ChannelHandle
from simcord.enums import ChannelType

from bot.domain.dto import Member
from shared.discord_jobs import (
    ENVELOPE,
    create_moderator,
    create_thread,
    direct_messages,
    imagine_in,
    make_reaction,
    text,
)

pytestmark = pytest.mark.asyncio

HIDDEN = "That job belongs to a private thread: only its members may use it, and only there."


def open_private_thread(world: Any) -> ChannelHandle:
    """Create a private thread of alice's in the parent channel, with bob in it."""
    thread = create_thread(world, world.channel, ChannelType.PRIVATE_THREAD)
    world.env.backend.add_thread_member(thread.id, world.bob.id)
    return thread


async def offers(actor: Any, channel: Any, command: str) -> list[str]:
    return [choice["value"] for choice in await actor.autocomplete(channel, command, "job", "")]


async def test_outside_a_private_thread_nobody_but_the_author_sees_its_job(open_world: Any) -> None:
    async with open_world() as world:
        thread = open_private_thread(world)
        moderator = create_moderator(world)
        outsider = world.guild.add_member(world.env.create_user("carol"))
        message = await imagine_in(world, thread)
        (view,) = await world.services.job_views.load_recent()
        assert view.channel == str(world.channel.id), "the rules of the parent hold"
        for actor in (outsider, moderator, world.bob):
            for command in ("reproduce", "film", "info"):
                assert await offers(actor, world.channel, command) == [], f"/{command} of {actor.name}"
                result = await actor.slash(world.channel, command, job=view.id)
                assert HIDDEN in text(result), f"/{command} by {actor.name}"
                assert result.ephemeral
            found = await actor.slash(world.channel, "reproduce", job=str(view.task.seed))
            assert "none has the seed" in text(found), "a seed is searched among visible jobs"
            await world.client.reactions.handle(make_reaction(world, message.id, actor, ENVELOPE))
            assert direct_messages(actor) == []
        assert view.id in await offers(world.alice, world.channel, "reproduce"), "it is the author's own"
        film = await world.alice.slash(world.channel, "film", job=view.id)
        assert film.ephemeral, "a film of it is not posted outside of the thread"


async def test_inside_a_private_thread_its_members_use_its_jobs(open_world: Any) -> None:
    async with open_world() as world:
        thread = open_private_thread(world)
        message = await imagine_in(world, thread)
        (view,) = await world.services.job_views.load_recent()
        assert await offers(world.bob, thread, "reproduce") == [view.id]
        assert "red apple" in text(await world.bob.context_menu(thread, "Details", message))
        assert not (await world.bob.slash(thread, "film", job=view.id)).ephemeral
        reaction = make_reaction(world, message.id, world.bob, ENVELOPE, channel_id=thread.id)
        await world.client.reactions.handle(reaction)
        assert view.id in direct_messages(world.bob)[0].content
        other_thread = open_private_thread(world)
        assert HIDDEN in text(await world.bob.slash(other_thread, "info", job=view.id))
        await world.bob.click(message, label="V1")
        newest = (await world.services.job_views.load_recent())[0]
        assert (newest.member_id, newest.thread) == (f"discord:{world.bob.id}", str(thread.id))


async def test_the_queue_and_the_list_of_a_moderator_hide_the_jobs_of_a_private_thread(open_world: Any) -> None:
    async with open_world(worker=False) as world:
        thread = open_private_thread(world)
        moderator = create_moderator(world)
        await world.alice.slash(thread, "imagine", prompt="red apple")
        for actor in (moderator, world.bob):
            content = text(await actor.slash(world.channel, "queue"))
            assert "a private picture" in content
            assert "red apple" not in content
        assert "red apple" in text(await world.bob.slash(thread, "queue"))
        assert "red apple" in text(await world.alice.slash(world.channel, "queue"))
        (choice,) = await moderator.autocomplete(world.channel, "cancel", "job", "")
        assert "red apple" not in choice["name"]
        cancelled = text(await moderator.slash(world.channel, "cancel", job=choice["value"]))
        assert "red apple" not in cancelled, "a moderator stops what they may not see"


async def test_a_favourite_of_a_private_thread_is_listed_there_alone(open_world: Any) -> None:
    async with open_world() as world:
        thread = open_private_thread(world)
        await imagine_in(world, thread)
        (view,) = await world.services.job_views.load_recent()
        member = Member(f"discord:{world.bob.id}", "bob", view.guild, channel=view.channel, thread=str(thread.id))
        await world.services.gallery.toggle_favourite(view.id, 0, member.id)
        history = world.services.history
        assert (await history.load_page(member.id, "favourites", 1)).job_count == 0
        assert (await history.load_page(member.id, "favourites", 1, str(thread.id))).job_count == 1


async def test_a_public_thread_counts_as_its_channel(open_world: Any) -> None:
    async with open_world() as world:
        await imagine_in(world, create_thread(world, world.channel))
        (view,) = await world.services.job_views.load_recent()
        assert await offers(world.bob, world.channel, "reproduce") == [view.id]
