"""Jobs for the Discord tests: start one, pause it, wait for its end or its delivery; and create a moderator."""

from __future__ import annotations

import asyncio
from typing import Any

import discord

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
