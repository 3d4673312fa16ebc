"""`/reproduce`: the same prompt, seed and settings once more, in exact mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.chat.answer import answer, member_of
from bot.chat.permitted import permit, refusing
from bot.chat.which import recent_jobs
from engine.job import Recipe

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Member, Place, Ticket, View

    Interaction = discord.Interaction[DarkroomClient]


@app_commands.command(description="Make a picture again: same prompt, same seed, same pixels")
@app_commands.describe(job="Choose one; a link to its message, its id or its seed works too")
async def reproduce(interaction: discord.Interaction[DarkroomClient], job: Range[str, 1, 300]) -> None:
    async with refusing(interaction):
        await again(interaction, await interaction.client.desk.shelf.meant(job, member_of(interaction)))


@reproduce.autocomplete("job")
async def jobs(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[app_commands.Choice[str]]:
    return await recent_jobs(lambda view: isinstance(view.recipe, Recipe))(interaction, typed)


async def again(interaction: Interaction, view: View) -> None:
    """Submit the same job again, with the response of any other."""
    await permit(interaction, "reproduce", view)

    async def ask(member: Member, place: Place) -> list[Ticket]:
        key = f"reproduce:{interaction.id}"
        return [await interaction.client.studio.reproduce(view.id, member, place, key=key)]

    await answer(interaction, ask)
