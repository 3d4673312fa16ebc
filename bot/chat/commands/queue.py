"""`/queue` and `/cancel`: what runs and waits, why, and how to cancel it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot import sentences
from bot.chat import presenter
from bot.chat.answer import guild_of, member_of, say
from bot.chat.called import WORDLESS
from bot.chat.permitted import permit, refusing
from bot.chat.sight import covered
from bot.chat.which import ALL, CHOICE, open_jobs
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]


@app_commands.command(description="Who is before you, and why")
async def queue(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with refusing(interaction):
        here = guild_of(interaction)  # only this server's jobs: no server sees another's prompts
        views = [covered(view, interaction.user) for view in await interaction.client.studio.queue(here)]
        me = member_of(interaction).id
        mine = any(view.member_id == me for view in views)
        hint = f"-# {interaction.client.tree.mention('cancel')} cancels one of yours." if mine else ""
        await say(interaction, presenter.queue(views, time.time(), hint, me))


@app_commands.command(description="Cancel one of your jobs, or all of them")
@app_commands.describe(job="Choose one, or all; a link, an id or a seed works too")
async def cancel(interaction: discord.Interaction[DarkroomClient], job: Range[str, 1, CHOICE]) -> None:
    async with refusing(interaction):
        if job.strip().casefold() == ALL:
            await say(interaction, await _all(interaction))
            return
        view = await interaction.client.desk.shelf.meant(job, member_of(interaction))
        member = await permit(interaction, "cancel", view)
        said = await interaction.client.studio.cancel(view.id, member)
        mine = view.member_id == member.id
        private = covered(view, interaction.user).private and not mine
        prompt = "A private job" if private else sentences.quoted(view.prompt or WORDLESS, 200)
        await say(interaction, f"**{prompt}**\n{said}")


@cancel.autocomplete("job")
async def jobs(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[app_commands.Choice[str]]:
    return await open_jobs(interaction, typed)


async def _all(interaction: Interaction) -> str:
    """Cancel every open job of the member, wherever they asked for it."""
    member, studio = member_of(interaction), interaction.client.studio
    views = await interaction.client.desk.shelf.open_of(member.id)
    if not views:
        raise Refused("Nothing of yours runs or waits.", 404)
    began = 0
    for view in views:
        await studio.cancel(view.id, member)
        began += view.started is not None
    tail = f" {began} had started: only the steps they ran are charged." if began else " They cost you nothing."
    return f"{sentences.jobs(len(views))} cancelled.{tail}"
