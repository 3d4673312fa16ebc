"""Where members ask: threads, forum posts, voice channels, direct conversations; and channels where we may not all."""

from __future__ import annotations

from typing import Any

import discord
import pytest
from simcord.builders import ChannelHandle
from simcord.enums import ChannelType

from bot.chat.channel import warning

pytestmark = pytest.mark.asyncio


def text(result: Any) -> str:
    assert result.response
    return result.response.content


def a_thread(world: Any, parent: Any, kind: int = ChannelType.PUBLIC_THREAD, *, locked: bool = False) -> ChannelHandle:
    """A thread of alice's."""
    made = world.env.backend.create_thread(parent.id, "apples", world.alice.id, type=kind)
    made.thread_members[world.client.user.id] = world.env.backend.now_iso()
    if locked:
        world.env.backend.edit_channel(made.id, {}, thread_metadata={"locked": True})
    return ChannelHandle(world.env, world.guild, made)


async def drawn(world: Any, channel: Any) -> discord.Message:
    """The finished message of a job that alice asked for there."""
    result = await world.alice.slash(channel, "imagine", prompt="red apple")
    assert not result.ephemeral, text(result)

    def final() -> discord.Message | None:
        found = next(each for each in channel.history() if each.id == result.response.id)
        return found if "Cancel" not in world.labels(found) else None

    return await world.until(final)


ROOMS = {
    "a thread": lambda world: a_thread(world, world.channel),
    "a private thread": lambda world: a_thread(world, world.channel, ChannelType.PRIVATE_THREAD),
    "a forum post": lambda world: a_thread(world, world.guild.create_forum_channel("gallery")),
    "a voice channel": lambda world: world.guild.create_voice_channel("talk"),
    "an announcement channel": lambda world: world.guild.create_news_channel("news"),
}


@pytest.mark.parametrize("room", ROOMS)
async def test_pictures_and_commands_work_in(open_world: Any, room: str) -> None:
    async with open_world() as world:
        channel = ROOMS[room](world)
        message = await drawn(world, channel)
        assert len(message.attachments) == 1
        (view,) = await world.studio.recent()
        assert view.channel == str(getattr(channel._channel, "parent_id", None) or channel.id), "a thread is its parent"
        again = await world.alice.context_menu(channel, "Details", message)
        assert "red apple" in text(again)
        (offer,) = await world.alice.autocomplete(channel, "reproduce", "job", "")
        assert offer["value"] == view.id
        assert (await world.alice.slash(channel, "mine")).ephemeral
        film = await world.alice.slash(channel, "film", job=view.id)
        assert len(film.response.attachments) == 1
        assert "red apple" not in text(await world.alice.slash(channel, "queue"))
        assert not (await world.alice.click(message, label="V1")).ephemeral


async def test_every_members_command_works_in_a_direct_conversation(open_world: Any) -> None:
    async with open_world() as world:
        user = world.alice.user
        result = await user.slash("imagine", prompt="red apple", seed=3)
        await world.until(lambda: world.painter.done)
        await world.until(lambda: "Cancel" not in world.labels(user.dm_channel.history()[-1]))
        (view,) = await world.studio.recent()
        assert "Seed: 3" in text(await user.slash("info", job=view.id))
        assert "Running: 0 of 3" in text(await user.slash("info"))
        assert "`ping`" in text(await user.slash("prefer show"))
        assert "/imagine" in text(await user.slash("help")) or "</imagine:" in text(await user.slash("help"))
        assert "Nothing is running" in text(await user.slash("queue"))
        assert len((await user.slash("film", job=view.id)).response.attachments) == 1
        assert (await user.slash("mine")).ephemeral
        again = await user.slash("reproduce", job="3")
        assert "red apple" in text(again)
        (offer, *_) = await user.autocomplete("cancel", "job", "")
        assert "red apple" in text(await user.slash("cancel", job=offer["value"]))
        assert "another server" in text(await world.bob.user.slash("info", job=view.id))
        assert result


NONE = discord.PermissionOverwrite(view_channel=False, send_messages=False)


async def test_missing_permissions_are_named_when_a_job_takes_long(open_world: Any) -> None:
    async with open_world() as world:
        deaf = world.guild.create_text_channel("deaf", overwrites={world.client.user: NONE})
        quick = await world.alice.slash(deaf, "imagine", prompt="red apple")
        assert quick.followups == [], "it is done before it matters"
        await world.painter.leave()
        slow = await world.alice.slash(deaf, "imagine", prompt="red apple")
        (said,) = slow.followups
        assert said.ephemeral
        assert "View Channel" in said.content
        assert "Send Messages" in said.content
        assert "direct message" in said.content


async def test_where_nothing_may_be_attached_neither_job_nor_film_is_taken(open_world: Any) -> None:
    async with open_world() as world:
        await drawn(world, world.channel)
        (view,) = await world.studio.recent()
        everyone = world.guild.default_role
        mute = world.guild.create_text_channel(
            "mute", overwrites={everyone: discord.PermissionOverwrite(attach_files=False)}
        )
        for command, options in (
            ("imagine", {"prompt": "a"}),
            ("film", {"job": view.id}),
            ("reproduce", {"job": view.id}),
        ):
            refused = await world.alice.slash(mute, command, **options)
            assert refused.ephemeral
            assert "Attach Files" in text(refused)
        assert len(await world.studio.recent()) == 1


class Asked:
    """As much of an interaction as the question needs."""

    def __init__(self, channel: Any, **may: bool) -> None:
        self.guild_id: int | None = 1
        self.channel = channel
        self.app_permissions = discord.Permissions(**may)


ALL = {"view_channel": True, "send_messages": True, "read_message_history": True, "send_messages_in_threads": True}


async def test_the_sentence_says_what_is_missing_where_it_matters() -> None:
    def said(eta: float | None, channel: Any = None, **without: bool) -> str:
        return warning(Asked(channel, **{**ALL, **without}), eta, 840.0)  # pyright: ignore[reportArgumentType]

    assert said(None) == ""
    assert said(30.0, view_channel=False) == ""
    assert said(90.0, view_channel=False).startswith("I lack View Channel here")
    assert "14 min" in said(None, view_channel=False, read_message_history=False)
    assert "View Channel, Send Messages and Read Message History" in said(
        None, view_channel=False, send_messages=False, read_message_history=False
    )


async def test_in_a_locked_thread_it_is_said_before_it_matters(open_world: Any) -> None:
    async with open_world() as world:
        await world.painter.leave()
        room = world.guild.create_text_channel(
            "room", overwrites={world.client.user: discord.PermissionOverwrite(manage_threads=False)}
        )
        thread = a_thread(world, room, locked=True)
        await world.env.settle()
        result = await world.alice.slash(thread, "imagine", prompt="red apple")
        (said,) = result.followups
        assert "Manage Threads (this one is locked)" in said.content
        assert "Send Messages in Threads" not in said.content
