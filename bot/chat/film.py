"""`/film`: how a job's pictures came to be, as an animation that fits where it is posted."""

from __future__ import annotations

import asyncio
import io
import time
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.chat.answer import member_of, place_of
from bot.chat.channel import check_channel
from bot.chat.permitted import permit, refusing
from bot.chat.presenter import ALT
from bot.chat.quiet import QUIET
from bot.chat.which import recent_jobs
from bot.desk.publishing import publishable
from bot.images.gallery import NO_FILM
from bot.refused import Refused
from bot.sentences import quoted, shortened

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import View

MARGIN = 64 * 1024  # of the size limit, for what is sent around the file
GLANCE = 1.5  # seconds that the rules may take: Discord waits three for a first answer


@app_commands.command(description="Show how a picture came out of the noise, as an animation")
@app_commands.describe(job="Choose one; a link to its message, its id or its seed works too")
async def film(interaction: discord.Interaction[DarkroomClient], job: Range[str, 1, 300]) -> None:
    async with refusing(interaction):
        view = await interaction.client.desk.shelf.meant(job, member_of(interaction))
        await permit(interaction, "film", view)
        await post_film(interaction, view)


@film.autocomplete("job")
async def jobs(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[app_commands.Choice[str]]:
    return await recent_jobs(_has_film)(interaction, typed)


def _has_film(view: View) -> bool:
    return view.state == "finished" and bool(view.ladders) and view.deleted is None


async def _for_all(interaction: discord.Interaction[DarkroomClient], view: View) -> bool:
    """Whether everybody here may see it; what cannot be decided in time is for one alone."""
    member = member_of(interaction)
    try:
        async with asyncio.timeout(GLANCE):
            terms = await interaction.client.desk.administration.terms(member)
            return await publishable(view, member, terms)
    except TimeoutError:
        return False


async def post_film(interaction: discord.Interaction[DarkroomClient], view: View) -> None:
    """The film as the answer to a command or a press; for the asker alone where the rules here would not have had it.

    Raises `Refused`.
    """
    check_channel(interaction)
    if not _has_film(view):
        raise Refused(NO_FILM, 404)
    alone = not await _for_all(interaction, view)
    await interaction.response.defer(ephemeral=alone, thinking=True)  # it may take more than three seconds
    made = await interaction.client.studio.film(view.id, interaction.filesize_limit - MARGIN)
    alt = shortened(f"Out of noise comes: {view.prompt}", ALT)
    message = await interaction.edit_original_response(
        content=f"🎞️ **{quoted(view.prompt, 900)}** · {quoted(view.member_name, 64)}",
        attachments=[discord.File(io.BytesIO(made), f"darkroom-{view.id}-film.webp", description=alt)],
        allowed_mentions=QUIET,
    )
    if not alone:
        place = place_of(interaction, time.time())
        place.where["message"] = str(message.id)
        if not await interaction.client.desk.deliveries.filmed(view.id, place):  # deleted while we made it
            await interaction.delete_original_response()
