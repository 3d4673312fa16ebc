"""Kinds of channels: threads, forum posts, voice channels, direct messages; and channels with missing permissions."""

from __future__ import annotations

from typing import Any

import discord
import pytest
from simcord.enums import ChannelType

from bot.discord.responses import permission_warning
from shared.discord_jobs import create_thread, imagine_in, text

pytestmark = pytest.mark.asyncio


CHANNELS = {
    "a thread": lambda world: create_thread(world, world.channel),
    "a private thread": lambda world: create_thread(world, world.channel, ChannelType.PRIVATE_THREAD),
    "a forum post": lambda world: create_thread(world, world.guild.create_forum_channel("gallery")),
    "a voice channel": lambda world: world.guild.create_voice_channel("talk"),
    "an announcement channel": lambda world: world.guild.create_news_channel("news"),
}


@pytest.mark.slow
@pytest.mark.parametrize("room", CHANNELS)
async def test_pictures_and_commands_work_in_every_kind_of_channel(open_world: Any, room: str) -> None:
    async with open_world() as world:
        channel = CHANNELS[room](world)
        message = await imagine_in(world, channel)
        assert len(message.attachments) == 1
        (view,) = await world.services.job_views.load_recent()
        assert view.channel == str(getattr(channel._channel, "parent_id", None) or channel.id), (
            "a thread counts as its parent"
        )
        details = await world.alice.context_menu(channel, "Details", message)
        assert "red apple" in text(details)
        (offer,) = await world.alice.autocomplete(channel, "reproduce", "job", "")
        assert offer["value"] == view.id
        assert (await world.alice.slash(channel, "mine")).ephemeral
        film = await world.alice.slash(channel, "film", job=view.id)
        assert len(film.response.attachments) == 1
        assert "red apple" not in text(await world.alice.slash(channel, "queue"))
        assert not (await world.alice.click(message, label="V1")).ephemeral


@pytest.mark.slow
async def test_every_command_for_members_works_in_a_direct_message(open_world: Any) -> None:
    async with open_world() as world:
        user = world.alice.user
        result = await user.slash("imagine", prompt="red apple", seed=3)
        await world.wait_until(lambda: world.painter.finished_jobs)
        await world.wait_until(lambda: "Cancel" not in world.labels(user.dm_channel.history()[-1]))
        (view,) = await world.services.job_views.load_recent()
        assert "Seed: 3" in text(await user.slash("info", job=view.id))
        assert "Running: 0 of 3" in text(await user.slash("info"))
        assert "`ping`" in text(await user.slash("prefer show"))
        assert "/imagine" in text(await user.slash("help")) or "</imagine:" in text(await user.slash("help"))
        assert "Nothing is running" in text(await user.slash("queue"))
        assert len((await user.slash("film", job=view.id)).response.attachments) == 1
        assert (await user.slash("mine")).ephemeral
        reproduction = await user.slash("reproduce", job="3")
        assert "red apple" in text(reproduction)
        (offer, *_) = await user.autocomplete("cancel", "job", "")
        assert "red apple" in text(await user.slash("cancel", job=offer["value"]))
        assert "another server" in text(await world.bob.user.slash("info", job=view.id))
        assert result


NO_ACCESS = discord.PermissionOverwrite(view_channel=False, send_messages=False)


async def test_missing_permissions_are_named_when_a_job_takes_long(open_world: Any) -> None:
    async with open_world() as world:
        closed_channel = world.guild.create_text_channel("deaf", overwrites={world.client.user: NO_ACCESS})
        quick = await world.alice.slash(closed_channel, "imagine", prompt="red apple")
        assert quick.followups == [], "a quick job ends before permissions matter"
        await world.painter.leave_pool()
        slow_reply = await world.alice.slash(closed_channel, "imagine", prompt="red apple")
        (followup,) = slow_reply.followups
        assert followup.ephemeral
        assert "View Channel" in followup.content
        assert "Send Messages" in followup.content
        assert "direct message" in followup.content


async def test_without_permission_to_attach_files_jobs_and_films_are_refused(open_world: Any) -> None:
    async with open_world() as world:
        await imagine_in(world, world.channel)
        (view,) = await world.services.job_views.load_recent()
        everyone_role = world.guild.default_role
        mute_channel = world.guild.create_text_channel(
            "mute", overwrites={everyone_role: discord.PermissionOverwrite(attach_files=False)}
        )
        for command, options in (
            ("imagine", {"prompt": "a"}),
            ("film", {"job": view.id}),
            ("reproduce", {"job": view.id}),
        ):
            refusal = await world.alice.slash(mute_channel, command, **options)
            assert refusal.ephemeral
            assert "Attach Files" in text(refusal)
        assert len(await world.services.job_views.load_recent()) == 1


class FakeInteraction:
    """The part of an interaction that the warning needs."""

    def __init__(self, channel: Any, **permissions: bool) -> None:
        self.guild_id: int | None = 1
        self.channel = channel
        self.app_permissions = discord.Permissions(**permissions)


ALL_PERMISSIONS = {
    "view_channel": True,
    "send_messages": True,
    "read_message_history": True,
    "send_messages_in_threads": True,
}


async def test_the_warning_names_missing_permissions_for_long_jobs_only() -> None:
    def warn(eta: float | None, channel: Any = None, **missing: bool) -> str:
        return permission_warning(FakeInteraction(channel, **{**ALL_PERMISSIONS, **missing}), eta, 840.0)  # pyright: ignore[reportArgumentType]

    assert warn(None) == ""
    assert warn(30.0, view_channel=False) == ""
    assert warn(90.0, view_channel=False).startswith("I lack View Channel here")
    assert "14 min" in warn(None, view_channel=False, read_message_history=False)
    assert "View Channel, Send Messages and Read Message History" in warn(
        None, view_channel=False, send_messages=False, read_message_history=False
    )


async def test_in_a_locked_thread_the_warning_comes_with_the_answer(open_world: Any) -> None:
    async with open_world() as world:
        await world.painter.leave_pool()
        room = world.guild.create_text_channel(
            "room", overwrites={world.client.user: discord.PermissionOverwrite(manage_threads=False)}
        )
        thread = create_thread(world, room, is_locked=True)
        await world.env.settle()
        result = await world.alice.slash(thread, "imagine", prompt="red apple")
        (followup,) = result.followups
        assert "Manage Threads (this one is locked)" in followup.content
        assert "Send Messages in Threads" not in followup.content
