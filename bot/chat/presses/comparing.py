"""A picture beside its source, shown to the presser only.

The permission for the picture was checked before; the one for its source is checked here.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import discord

from bot.chat.called import called
from bot.chat.permitted import permit
from bot.chat.quiet import QUIET
from bot.refused import Refused
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import View

    Interaction = discord.Interaction[DarkroomClient]

NONE = "This picture was made from no other."
SHOWN, ALT = 120, 400  # characters of a prompt in the message and in a picture's description


async def compare(interaction: Interaction, view: View, index: int) -> None:
    """Show the two with their labels. Raises `Refused`, also if the source is gone or not theirs to see."""
    if view.parent is None:
        raise Refused(NONE, 404)
    await interaction.response.defer(ephemeral=True, thinking=True)
    studio, (job, at) = interaction.client.studio, view.parent
    before = await studio.view(job)
    await permit(interaction, "details", before)
    if view.action == "remix" and any(shot.index == index for shot in before.pictures):
        at = index  # a remix has the same noise, picture by picture
    made = await studio.compared([(job, at), (view.id, index)], [f"before: {at + 1}", f"after: {index + 1}"])
    names = [called(one.prompt) for one in (before, view)]
    said = "Before: **{}**\nAfter: **{}**".format(*(quoted(name, SHOWN) for name in names))
    alt = "Left: {}. Right: {}".format(*(name[:ALT] for name in names))
    file = discord.File(io.BytesIO(made), f"darkroom-{view.id}-compared.png", description=alt)
    await interaction.edit_original_response(content=said, attachments=[file], allowed_mentions=QUIET)
