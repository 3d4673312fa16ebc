"""`/my-data` and `/forget-me`: what is kept of a member, for them to take along, and to have removed for good."""

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

UPLOAD = 10_000_000  # bytes that Discord takes everywhere
FILE = "my-data.zip"
QUESTION = """Remove everything of yours, in every server? That is {jobs} with their pictures and messages, \
enlargements of them, your favourites, preferences and own flags. What still runs is cancelled.
What you used of your limits stays counted until its time is over, but without your name. Blocks, and what \
moderators decided, stay.
**This cannot be undone.** {copy} gives you a copy first."""
UNDER_WAY = """It is under way: {jobs} with all that belongs to them. Pictures go within minutes, what still runs \
stops at its next step, and messages in channels go one after another. One that Discord does not let me delete stays, \
but its buttons do nothing any more."""


@app_commands.command(name="my-data", description="A copy of what is kept of you: your jobs, settings and pictures")
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
    """What is in the file, and what is not."""
    said = f"This is what is kept of you: {jobs(parcel.jobs)}, in `jobs.json`"
    if parcel.left:
        return (
            f"{said}. Your {parcel.left} pictures are too large to be sent here; whoever runs this bot can give you "
            "all of them (`darkroom export`)."
        )
    return f"{said}, and {parcel.pictures} {'picture' if parcel.pictures == 1 else 'pictures'}."


@app_commands.command(name="forget-me", description="Have everything of yours removed for good; asks once more")
async def forget_me(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with refusing(interaction):
        about = await interaction.client.desk.forgetting.about(member_of(interaction).id)
        said = QUESTION.format(jobs=jobs(about), copy=interaction.client.tree.mention("my-data"))
        view = ui.View(timeout=None)
        view.add_item(Meant())
        view.stop()  # its button is found by its id, also after a restart
        await interaction.response.send_message(said, view=view, ephemeral=True, allowed_mentions=QUIET)


class Meant(ui.DynamicItem[ui.Button[Any]], template=r"forget:me"):
    """Yes. It is always the presser's own that goes."""

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
            log.exception("a wish to be forgotten was not taken")
            await sorry(interaction)
