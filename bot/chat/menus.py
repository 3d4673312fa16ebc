"""The menus of a message: reproduce what it shows, use its words as a prompt, see all about it, report it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands, ui

from bot.chat import imagine
from bot.chat.answer import sorry
from bot.chat.overview import about
from bot.chat.permitted import permit, refusing
from bot.chat.reproduce import again
from bot.chat.which import job_shown, shown_by
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

PROMPT = 2000


@app_commands.context_menu(name="Reproduce")
async def reproduce_shown(interaction: discord.Interaction[DarkroomClient], message: discord.Message) -> None:
    async with refusing(interaction):
        await again(interaction, await shown_by(interaction, message))


@app_commands.context_menu(name="Details")
async def show_details(interaction: discord.Interaction[DarkroomClient], message: discord.Message) -> None:
    async with refusing(interaction):
        await about(interaction, await shown_by(interaction, message))


@app_commands.context_menu(name="Use as prompt")
async def use_as_prompt(interaction: discord.Interaction[DarkroomClient], message: discord.Message) -> None:
    """Of our own messages the prompt that they show, of any other one its text."""
    async with refusing(interaction):
        words = await _words(interaction, message)
        await interaction.response.send_modal(Prompt(words[:PROMPT]))


async def _words(interaction: Interaction, message: discord.Message) -> str:
    if job := await job_shown(interaction, message):
        view = await interaction.client.studio.view(job)
        await permit(interaction, "prompt", view)
        return view.prompt
    words = " ".join(message.content.split())
    if not words:
        raise Refused("There are no words in that message.")
    return words


class Prompt(ui.Modal, title="Use as prompt"):
    """The words, to be changed and sent."""

    def __init__(self, words: str) -> None:
        super().__init__(timeout=None)
        self.words: ui.TextInput[Prompt] = ui.TextInput(
            style=discord.TextStyle.paragraph, default=words, min_length=1, max_length=PROMPT, custom_id="prompt"
        )
        self.add_item(ui.Label(text="Prompt", description="Flags like --ar 3:2 work here too", component=self.words))

    async def on_submit(self, interaction: discord.Interaction[Any], /) -> None:
        async with refusing(interaction):
            await permit(interaction, "imagine")
            await imagine.typed(interaction, self.words.value)

    async def on_error(self, interaction: discord.Interaction[Any], error: Exception, /) -> None:
        log.error("a prompt from a modal failed", exc_info=error)
        await sorry(interaction)
