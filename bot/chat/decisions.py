"""What moderators do about held pictures: look at them alone, show them to all, keep them hidden.

Who may press was decided before. Knows the desk and the interaction; knows nothing of how a picture is checked.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import discord

from bot import grid
from bot.chat import delivery
from bot.chat.answer import member_of, refuse
from bot.chat.presenter import Button, Card, refusal
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import View

log = logging.getLogger(__name__)

QUIET = discord.AllowedMentions.none()
LATE = "It is decided and noted, but this message could not be brought up to date."


async def look(interaction: discord.Interaction[DarkroomClient], job: str) -> None:
    """The held pictures as they are, behind Discord's own cover, for whoever pressed alone."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    try:
        pictures = await interaction.client.desk.review.look(job, member_of(interaction))
    except Refused as refused:
        await interaction.edit_original_response(content=refusal(refused.sentence), allowed_mentions=QUIET)
        return
    limit = interaction.filesize_limit // len(pictures)
    files = [await asyncio.to_thread(_covered, index, content, limit) for index, content in pictures]
    missing = "" if all(files) else " What is missing here is larger than this server takes."
    said = f"Only you see this.{missing}"
    await interaction.edit_original_response(content=said, attachments=[file for file in files if file])


async def decide(
    interaction: discord.Interaction[DarkroomClient], button: Button, controls: Callable[[Card], discord.ui.View | None]
) -> None:
    """Show a picture or keep it hidden, and bring the message with the button up to date."""
    client, show = interaction.client, button.press == "approve"
    try:
        view = await client.desk.review.decide(button.job, button.index or 0, member_of(interaction), show=show)
    except Refused as refused:
        await refuse(interaction, refused.sentence)
        return
    await interaction.response.defer()
    try:
        await _renew(interaction, view, controls)
    except Exception:  # the decision stands; the apology must not touch the message itself
        log.exception("job %s: its message was not renewed", button.job)
        await interaction.followup.send(LATE, ephemeral=True)


async def _renew(
    interaction: discord.Interaction[DarkroomClient], view: View, controls: Callable[[Card], discord.ui.View | None]
) -> None:
    card, picture = await delivery.ending(interaction.client.studio, view, interaction.filesize_limit)
    files = discord.utils.MISSING
    if picture is not None:
        files = [discord.File(io.BytesIO(picture.payload), picture.name, description=card.alt or None)]
    await interaction.edit_original_response(
        content=card.content, attachments=files, view=controls(card), allowed_mentions=QUIET
    )


def _covered(index: int, content: bytes, limit: int) -> discord.File | None:
    fitting = grid.under(content, limit)
    if fitting is None:
        return None
    payload, form = fitting
    return discord.File(io.BytesIO(payload), f"held-{index + 1}.{delivery.ENDING[form]}", spoiler=True)
