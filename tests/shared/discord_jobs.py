"""Steps of the Discord tests: jobs started, paused, awaited until shown; threads, reactions and a moderator."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import discord
from simcord.builders import ChannelHandle
from simcord.enums import ChannelType

from bot.domain.job_states import is_end


async def start_paused_job(world: Any, member: Any = None, channel_handle: Any = None) -> Any:
    """Start a job and pause it at step 5, with its first frames shown."""
    world.painter.pause_step = 5
    result = await (member or world.alice).slash(channel_handle or world.channel, "imagine", prompt="red apple")
    channel = (channel_handle or world.channel).id
    await world.wait_until(lambda: "step 4 of 20" in get_message(world, channel, result.response.id).content)
    world.painter.pause_step = None
    return result


async def wait_until_delivered(world: Any) -> None:
    """Wait until every job is over, and the store says that every message was shown or why not."""
    async with asyncio.timeout(40):
        while any(not is_end(view.state) for view in await world.services.job_views.load_recent()):
            await asyncio.sleep(0.02)
        while await world.deliveries.list_undelivered("discord"):
            await asyncio.sleep(0.02)


async def imagine(world: Any, prompt: str = "red apple", **options: Any) -> discord.Message:
    """Imagine, wait for the end, and return the job's message."""
    return await world.wait_for_end(await world.alice.slash(world.channel, "imagine", prompt=prompt, **options))


def get_message(world: Any, channel: int, message: int) -> Any:
    return world.env.backend.messages[channel][message]


def create_moderator(world: Any) -> Any:
    """Create a member who may manage messages in the whole server."""
    role = world.guild.create_role("mod", permissions=discord.Permissions(manage_messages=True))
    return world.guild.add_member(world.env.create_user("mo"), roles=[role])


ENVELOPE = "✉️"


def direct_messages(actor: Any) -> list[Any]:
    channel = actor.user.dm_channel
    return list(channel.history()) if channel is not None else []


def make_reaction(world: Any, message: int, actor: Any, emoji: str, guild: Any = None, **changes: Any) -> Any:
    """A raw reaction event of a member of the server."""
    discord_guild = world.client.get_guild((guild or world.guild).id)
    payload: Any = {
        "id": str(actor.id),
        "username": actor.name,
        "discriminator": "0",
        "avatar": None,
        "global_name": None,
    }
    member = discord.Member(
        data={
            "user": payload,
            "flags": 0,
            "joined_at": None,
            "premium_since": None,
            "deaf": False,
            "mute": False,
            "roles": [str(each) for each in world.env.backend.get_guild(discord_guild.id).members[actor.id].role_ids],
        },
        guild=discord_guild,
        state=world.client._connection,
    )
    values = {
        "emoji": discord.PartialEmoji(name=emoji),
        "user_id": actor.id,
        "member": member,
        "guild_id": discord_guild.id,
        "message_id": message,
        "channel_id": world.channel.id,
        "message_author_id": world.client.user.id,
    }
    return SimpleNamespace(**{**values, **changes})


def text(result: Any) -> str:
    assert result.response
    return result.response.content


def create_thread(
    world: Any, parent: Any, kind: int = ChannelType.PUBLIC_THREAD, *, is_locked: bool = False
) -> ChannelHandle:
    """Create a thread of alice's."""
    thread = world.env.backend.create_thread(parent.id, "apples", world.alice.id, type=kind)
    thread.thread_members[world.client.user.id] = world.env.backend.now_iso()
    if is_locked:
        world.env.backend.edit_channel(thread.id, {}, thread_metadata={"locked": True})
    return ChannelHandle(world.env, world.guild, thread)


async def newest_view(world: Any) -> Any:
    return (await world.services.job_views.load_recent())[0]


async def imagine_in(world: Any, channel: Any) -> discord.Message:
    """Finish a job of alice's there and return its message."""
    result = await world.alice.slash(channel, "imagine", prompt="red apple")
    assert not result.ephemeral, text(result)

    def find_final() -> discord.Message | None:
        message = next(each for each in channel.history() if each.id == result.response.id)
        return message if "Cancel" not in world.labels(message) else None

    return await world.wait_until(find_final)
