"""`/help`: what this bot does, on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
from discord import app_commands

from bot.chat import presenter

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient


@app_commands.command(name="help", description="What this bot does, and how to ask for it")
async def show_help(interaction: discord.Interaction[DarkroomClient]) -> None:
    await interaction.response.send_message(presenter.HELP, ephemeral=True)
