"""`/my-data` and `/forget-me`: the export of a member's data, and its deletion."""

from __future__ import annotations

import io
import logging
import re
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import app_commands, ui

from bot.chat.answer import member_of, sorry
from bot.chat.permitted import permit, refusing
from bot.chat.quiet import QUIET
from bot.sentences import jobs

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.desk.export import Parcel

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

UPLOAD = 10_000_000  # bytes that Discord accepts everywhere
FILE = "my-data.zip"
QUESTION = """Delete all your data, in every server? That is {jobs} with their pictures and messages, \
upscaled copies of them, your favourites, preferences and flag aliases. Running jobs are cancelled.
Your usage still counts until its window ends, but without your name. Blocks and moderators' decisions stay.
**This cannot be undone.** {copy} gives you a copy first."""
UNDER_WAY = """It is under way: {jobs} with all that belongs to them. Pictures go within minutes, running jobs stop \
at their next step, and messages in channels go one by one. A message that Discord does not let me delete stays, but \
its buttons stop working."""


@app_commands.command(name="my-data", description="A copy of your stored data: jobs, settings and pictures")
async def my_data(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with refusing(interaction):
        await interaction.response.defer(ephemeral=True, thinking=True)
        limit = min(UPLOAD, interaction.filesize_limit)
        parcel = await interaction.client.desk.export.parcel(member_of(interaction).id, limit)
        await interaction.edit_original_response(
            content=described(parcel),
            attachments=[discord.File(io.BytesIO(parcel.content), FILE)],
            allowed_mentions=QUIET,
        )


def described(parcel: Parcel) -> str:
    """Return what is in the file, and what is not."""
    said = f"This is your stored data: {jobs(parcel.jobs)}, in `jobs.json`"
    if parcel.left:
        return (
            f"{said}. Your {parcel.left} pictures are too large to be sent here; this bot's operator can give you "
            "all of them (`darkroom export`)."
        )
    return f"{said}, and {parcel.pictures} {'picture' if parcel.pictures == 1 else 'pictures'}."


@app_commands.command(name="forget-me", description="Delete all your data for good; asks for confirmation")
async def forget_me(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with refusing(interaction):
        about = await interaction.client.desk.forgetting.about(member_of(interaction).id)
        said = QUESTION.format(jobs=jobs(about), copy=interaction.client.tree.mention("my-data"))
        view = ui.View(timeout=None)
        view.add_item(Meant())
        view.stop()  # its button is found by its id, also after a restart
        await interaction.response.send_message(said, view=view, ephemeral=True, allowed_mentions=QUIET)


class Meant(ui.DynamicItem[ui.Button[Any]], template=r"forget:me"):
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
        try:
            async with refusing(interaction):
                member = await permit(interaction, "forget")
                await interaction.response.defer()
                about = await interaction.client.desk.forgetting.ask(member.id)
                await interaction.edit_original_response(content=UNDER_WAY.format(jobs=jobs(about)), view=None)
        except Exception:
            log.exception("a request to be forgotten failed")
            await sorry(interaction)
