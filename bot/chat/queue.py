"""`/queue` and `/cancel`: what runs and waits, why, and how to take it back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import discord
from discord import app_commands

from bot.chat import presenter
from bot.chat.answer import guild_of

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient


@app_commands.command(description="Who is before you, and why")
@app_commands.guild_install()
@app_commands.allowed_contexts(guilds=True, dms=True, private_channels=False)
async def queue(interaction: discord.Interaction[DarkroomClient]) -> None:
    views = await interaction.client.studio.queue(guild_of(interaction))  # of this server: prompts are its own business
    text = presenter.queue(views, time.time())
    await interaction.response.send_message(text, ephemeral=True, allowed_mentions=discord.AllowedMentions.none())
