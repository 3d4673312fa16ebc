"""Message menus: reproduce the job, use its prompt, show its details, report it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import discord
from discord import app_commands

from bot.chat.answer import sorry
from bot.chat.commands import imagine
from bot.chat.commands.overview import about
from bot.chat.commands.reproduce import again
from bot.chat.permitted import permit, refusing
from bot.chat.presses.forms import filled, form, line, named, open_form
from bot.chat.presses.reporting import open_report
from bot.chat.which import job_shown, shown_by
from bot.prompt.permutations import literally
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

PROMPT = 2000  # characters, as /imagine takes them
FORM, NOBODYS = "prompt", "0" * 26  # the id of a form about no job


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
    """Open a form with the prompt of our own message, or with the text of any other one."""
    async with refusing(interaction):
        words = await _words(interaction, message)
        modal = form("Use as prompt", named(FORM, NOBODYS))
        modal.add_item(line(FORM, "Prompt", "Flags like --ar 3:2 work here too", value=words, most=PROMPT))
        await open_form(interaction, modal)


@app_commands.context_menu(name="Report")
async def report_shown(interaction: discord.Interaction[DarkroomClient], message: discord.Message) -> None:
    async with refusing(interaction):
        view = await shown_by(interaction, message)
        await permit(interaction, "report", view)
        await open_report(interaction, view)


async def _words(interaction: Interaction, message: discord.Message) -> str:
    if job := await job_shown(interaction, message):
        view = await interaction.client.studio.view(job)
        await permit(interaction, "prompt", view)
        return literally(view.prompt)
    words = " ".join(message.content.split())
    if not words:
        raise Refused("There are no words in that message.")
    return words


async def submitted(interaction: Interaction) -> None:
    """Handle a submitted prompt form, also after a restart; ignore other interactions."""
    sent = filled(interaction)
    if sent is None or sent.form != FORM:
        return
    try:
        async with refusing(interaction):
            await permit(interaction, "imagine")
            await imagine.typed(interaction, sent.fields.get(FORM, ""))
    except Exception:
        log.exception("a prompt from a form failed")
        await sorry(interaction)
