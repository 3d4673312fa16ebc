"""`/fast`, `/relax`, `/turbo`, `/stealth`, `/public`: shortcuts for the preferences speed and results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
from discord import app_commands

from bot.discord.checks import reply_on_error
from bot.discord.commands.member.prefer import render_preference
from bot.discord.declarations import declare
from bot.discord.responses import member_of, send_ephemeral
from engine.contract import find_turbo

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]

NO_TURBO_TEXT = """Turbo is not available here; your speed is unchanged. For a quicker picture add `--fast`: \
it takes 30 steps. {fast} keeps your jobs in the usual queue."""
TURBO_TEXT = """Turbo is not a speed here; yours is unchanged. For a quicker picture add `--turbo`: \
it takes 4 steps. {fast} keeps your jobs in the usual queue."""


async def _set_preference(interaction: Interaction, name: str, value: str) -> None:
    async with reply_on_error(interaction):
        preferences = await interaction.client.services.preferences.set_preference(
            member_of(interaction).id, name, value
        )
        await send_ephemeral(interaction, f"From now on: {render_preference(name, preferences)}")


@app_commands.command(
    description="From now on use the usual queue, which counts against your limit", extras=declare("prefer")
)
async def fast(interaction: discord.Interaction[DarkroomClient]) -> None:
    await _set_preference(interaction, "speed", "fast")


@app_commands.command(
    description="From now on use the relaxed queue, which does not count against your limit", extras=declare("prefer")
)
async def relax(interaction: discord.Interaction[DarkroomClient]) -> None:
    await _set_preference(interaction, "speed", "relaxed")


@app_commands.command(description="Says why there is no third speed, and what is quicker", extras=declare("prefer"))
async def turbo(interaction: discord.Interaction[DarkroomClient]) -> None:
    model_profile = interaction.client.services.catalog.find_profile(None)
    text = TURBO_TEXT if model_profile and find_turbo(model_profile) else NO_TURBO_TEXT
    await send_ephemeral(interaction, text.format(fast=interaction.client.mention_command("fast")))


@app_commands.command(
    description="From now on only you see your results, where the server's rules allow it", extras=declare("prefer")
)
async def stealth(interaction: discord.Interaction[DarkroomClient]) -> None:
    await _set_preference(interaction, "results", "private")


@app_commands.command(description="From now on everybody in the channel sees your results", extras=declare("prefer"))
async def public(interaction: discord.Interaction[DarkroomClient]) -> None:
    await _set_preference(interaction, "results", "public")
