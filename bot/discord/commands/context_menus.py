"""Message menus: reproduce the job, use its prompt, show its details, report it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import discord
from discord import app_commands

from bot.discord.commands import imagine
from bot.discord.commands.queue import show_details
from bot.discord.commands.reproduce import reproduce_job
from bot.discord.components.forms import create_form, form_id, open_form, parse_submission, prompt_field
from bot.discord.components.review_buttons import open_report_form
from bot.discord.declarations import declare
from bot.discord.job_choice import find_shown_job, require_shown_job
from bot.discord.responses import reply_on_error, report_errors, require_permission
from bot.domain.errors import UserError
from bot.prompt.permutations import escape_braces

if TYPE_CHECKING:
    from bot.discord.client import Interaction

log = logging.getLogger(__name__)

# the id of a form about no job
FORM_NAME = "prompt"
NO_JOB_ID = "0" * 26


@app_commands.context_menu(name="Reproduce", extras=declare("reproduce"))
async def reproduce_message(interaction: Interaction, message: discord.Message) -> None:
    async with reply_on_error(interaction):
        await reproduce_job(interaction, await require_shown_job(interaction, message))


@app_commands.context_menu(name="Details", extras=declare("details"))
async def show_job_details(interaction: Interaction, message: discord.Message) -> None:
    async with reply_on_error(interaction):
        await show_details(interaction, await require_shown_job(interaction, message))


@app_commands.context_menu(name="Use as prompt", extras=declare("prompt"))
async def use_as_prompt(interaction: Interaction, message: discord.Message) -> None:
    """Open a form with the prompt of the bot's own message, or with the text of any other message."""
    async with reply_on_error(interaction):
        prompt = await _prompt_of(interaction, message)
        field = prompt_field(FORM_NAME, "Prompt", "Flags like --ar 3:2 work here too", prompt)
        await open_form(interaction, create_form("Use as prompt", form_id(FORM_NAME, NO_JOB_ID), field))


@app_commands.context_menu(name="Report", extras=declare(rate="report"))
async def report_message(interaction: Interaction, message: discord.Message) -> None:
    async with reply_on_error(interaction):
        view = await require_shown_job(interaction, message)
        await require_permission(interaction, "report", view)
        await open_report_form(interaction, view)


async def _prompt_of(interaction: Interaction, message: discord.Message) -> str:
    if job := await find_shown_job(interaction, message):
        view = await interaction.client.services.job_views.load_view(job)
        await require_permission(interaction, "prompt", view)
        return escape_braces(view.prompt)
    prompt = " ".join(message.content.split())
    if not prompt:
        raise UserError("There are no words in that message.")
    return prompt


async def handle_prompt_form(interaction: Interaction) -> None:
    """Handle a submitted prompt form, also after a restart; ignore other interactions."""
    submission = parse_submission(interaction)
    if submission is None or submission.form_name != FORM_NAME:
        return
    async with report_errors(interaction, log, "a prompt from a form failed"):
        await require_permission(interaction, "imagine")
        await imagine.submit_prompt(interaction, submission.fields.get(FORM_NAME, ""))
