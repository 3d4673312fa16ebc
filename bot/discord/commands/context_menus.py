"""The menus of a message: reproduce its job, show its details, use its prompt, report it; and `/reproduce`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.commands import imagine
from bot.discord.commands.queue import show_details
from bot.discord.components.forms import create_form, form_id, open_form, parse_submission, prompt_field
from bot.discord.components.review_buttons import open_report_form
from bot.discord.declarations import declare
from bot.discord.job_choice import find_shown_job, recent_jobs_autocomplete, require_shown_job
from bot.discord.responses import member_of, reply_on_error, report_errors, require_permission, respond_with_jobs
from bot.domain.errors import UserError
from bot.prompt.concepts import escape_braces
from engine.contract import Recipe

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member


log = logging.getLogger(__name__)

# the id of a form about no job
FORM_NAME = "prompt"
NO_JOB_ID = "0" * 26


@app_commands.command(
    description="Make a picture again: same prompt, same seed, same pixels",
    extras=declare("reproduce", help="the same once more"),
)
@app_commands.describe(job="Choose one; a link to its message, its id or its seed works too")
async def reproduce(interaction: Interaction, job: Range[str, 1, 300]) -> None:
    async with reply_on_error(interaction):
        await reproduce_job(
            interaction, await interaction.client.services.history.find_job(job, member_of(interaction))
        )


reproduce.autocomplete("job")(recent_jobs_autocomplete(lambda view: isinstance(view.task, Recipe)))


async def reproduce_job(interaction: Interaction, view: JobView) -> None:
    """Submit the same job again; respond as to any job."""
    await require_permission(interaction, "reproduce", view)

    async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
        key = f"reproduce:{interaction.id}"
        return [await interaction.client.services.variations.reproduce(view.id, member, destination, key=key)]

    await respond_with_jobs(interaction, submit)


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
