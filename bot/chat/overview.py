"""`/info`: what applies to the member, what is used of it, and how the house stands; or all about one job."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot import sentences
from bot.chat.answer import guild_of, member_of, say
from bot.chat.details import details
from bot.chat.permitted import permit, refusing
from bot.chat.which import recent_jobs
from bot.sentences import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bot.chat.client import DarkroomClient
    from bot.studio import Studio
    from bot.views import View

    Interaction = discord.Interaction[DarkroomClient]


@app_commands.command(
    name="info", description="Your limits and what is left of them, the queue and the workers; or one job"
)
@app_commands.describe(job="All about this one; a link, an id or a seed works too")
async def show_info(interaction: discord.Interaction[DarkroomClient], job: Range[str, 1, 300] | None = None) -> None:
    async with refusing(interaction):
        if job is not None:
            await about(interaction, await interaction.client.desk.shelf.meant(job, member_of(interaction)))
            return
        await say(interaction, await _overview(interaction))


@show_info.autocomplete("job")
async def jobs(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[app_commands.Choice[str]]:
    return await recent_jobs(lambda _: True)(interaction, typed)


async def about(interaction: Interaction, view: View) -> None:
    """All about one job, for whoever may see it."""
    await permit(interaction, "details", view)
    await say(interaction, details(view, time.time()))


async def _overview(interaction: Interaction) -> str:
    desk, member = interaction.client.desk, member_of(interaction)
    mine = await desk.shelf.open_of(member.id)
    queue = await desk.studio.queue(guild_of(interaction))
    own = await asyncio.to_thread(_version)
    lines = [_now(mine, queue, interaction.guild_id is not None), *_workers(desk.studio), f"-# Darkroom {own}"]
    return "\n".join(lines)


def _now(mine: Sequence[View], queue: Sequence[View], in_server: bool) -> str:
    running = sum(view.state != "queued" for view in mine)
    where = "In this server" if in_server else "Here"
    waits = sum(view.state == "queued" for view in queue)
    return (
        f"**Now** · {sentences.jobs(running)} of yours running, {len(mine) - running} waiting\n"
        f"{where}: {len(queue) - waits} running, {waits} waiting"
    )


def _workers(studio: Studio) -> list[str]:
    """Who works, on what, and the models, as short lines."""
    workers = studio.workers()
    if not workers:
        return [f"**Workers** · {sentences.NO_WORKER}"]
    names = ", ".join(dict.fromkeys(quoted(one.device, 40) for one in workers.values()))
    models = ", ".join(dict.fromkeys(quoted(warm.name, 40) for one in workers.values() for warm in one.models))
    return [f"**Workers** · {len(workers)} online: {names[:300]}", f"**Models** · {models[:300] or 'none ready'}"]


def _version() -> str:
    try:
        return version("darkroom-bot")
    except PackageNotFoundError:
        return "unreleased"
