"""`/my-data` and `/forget-me`: the export of a member's data, and its deletion."""

from __future__ import annotations

import io
import logging
import re
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import app_commands, ui

from bot.discord.declarations import declare
from bot.discord.responses import NO_MENTIONS, member_of, reply_on_error, report_errors, require_permission
from bot.domain.texts import format_job_count
from bot.features.privacy.service import DataExport, ExportArchive
from bot.services.data_deletion import DataDeletion

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

MAX_EXPORT_BYTES = 10_000_000  # bytes that Discord accepts everywhere
EXPORT_NAME = "my-data.zip"
CONFIRM_TEXT = """Delete all your data, in every server? That is {jobs} with their pictures and messages, \
upscaled copies of them, your favourites, preferences and flag aliases. Running jobs are cancelled.
Your usage still counts until its window ends, but without your name. Blocks and moderators' decisions stay.
**This cannot be undone.** {copy} gives you a copy first."""
DELETION_STARTED = """It is under way: {jobs} with all that belongs to them. Pictures go within minutes, running jobs \
stop at their next step, and messages in channels go one by one. A message that Discord does not let me delete stays, \
but its buttons stop working."""


@app_commands.command(
    name="my-data",
    description="A copy of your stored data: jobs, settings and pictures",
    extras=declare("export", help="a copy of your data"),
)
async def my_data(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with reply_on_error(interaction):
        await interaction.response.defer(ephemeral=True, thinking=True)
        limit = min(MAX_EXPORT_BYTES, interaction.filesize_limit)
        archive = await interaction.client.services.get(DataExport).build_archive(member_of(interaction).id, limit)
        await interaction.edit_original_response(
            content=describe_archive(archive),
            attachments=[discord.File(io.BytesIO(archive.content), EXPORT_NAME)],
            allowed_mentions=NO_MENTIONS,
        )


def describe_archive(archive: ExportArchive) -> str:
    """Return what is in the file, and what is not."""
    text = f"This is your stored data: {format_job_count(archive.job_count)}, in `jobs.json`"
    if archive.omitted_pictures:
        return (
            f"{text}. Your {archive.omitted_pictures} pictures are too large to be sent here; this bot's operator can "
            "give you "
            "all of them (`darkroom export`)."
        )
    return f"{text}, and {archive.picture_count} {'picture' if archive.picture_count == 1 else 'pictures'}."


@app_commands.command(
    name="forget-me",
    description="Delete all your data for good; asks for confirmation",
    extras=declare("forget", help="delete your data"),
)
async def forget_me(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with reply_on_error(interaction):
        job_count = await interaction.client.services.get(DataDeletion).count_jobs(member_of(interaction).id)
        text = CONFIRM_TEXT.format(jobs=format_job_count(job_count), copy=interaction.client.mention_command("my-data"))
        view = ui.View(timeout=None)
        view.add_item(ForgetButton())
        view.stop()  # its button is found by its id, also after a restart
        await interaction.response.send_message(text, view=view, ephemeral=True, allowed_mentions=NO_MENTIONS)


class ForgetButton(ui.DynamicItem[ui.Button[Any]], template=r"forget:me"):
    """The confirmation. It always deletes the presser's own data."""

    def __init__(self) -> None:
        style = discord.ButtonStyle.danger
        super().__init__(ui.Button(label="Remove everything", style=style, custom_id="forget:me"))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls()

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "a request to be forgotten failed"):
            member = await require_permission(interaction, "forget")
            await interaction.response.defer()
            job_count = await interaction.client.services.get(DataDeletion).request_deletion(member.id)
            await interaction.edit_original_response(
                content=DELETION_STARTED.format(jobs=format_job_count(job_count)), view=None
            )
