"""A picture beside its source, shown to the presser only.

The caller has checked the permission for the picture; this module checks the one for its source.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import discord

from bot.discord.cards.job_cards import job_title
from bot.discord.checks import require_permission
from bot.discord.responses import NO_MENTIONS
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from engine.contract import Recipe, noise_seed

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView

    Interaction = discord.Interaction[DarkroomClient]

NO_SOURCE = "This picture was made from no other."
# characters of a prompt in the message and in a picture's description
MAX_PROMPT_CHARS = 120
MAX_ALT_CHARS = 400


async def send_comparison(interaction: Interaction, view: JobView, index: int) -> None:
    """Show the two with their labels. Raises `UserError`, also if the source is gone or the member may not see it."""
    if view.parent_image is None:
        raise UserError(NO_SOURCE, 404)
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, (parent_id, parent_index) = interaction.client.services, view.parent_image
    parent = await services.job_views.load_view(parent_id)
    await require_permission(interaction, "details", parent)
    if has_same_noise(parent, view, index):
        parent_index = index
    payload = await services.gallery.render_comparison(
        [(parent_id, parent_index), (view.id, index)], [f"before: {parent_index + 1}", f"after: {index + 1}"]
    )
    names = [job_title(candidate.prompt) for candidate in (parent, view)]
    text = "Before: **{}**\nAfter: **{}**".format(*(escape_discord(name, MAX_PROMPT_CHARS) for name in names))
    description = "Left: {}. Right: {}".format(*(name[:MAX_ALT_CHARS] for name in names))
    file = discord.File(io.BytesIO(payload), f"darkroom-{view.id}-compared.png", description=description)
    await interaction.edit_original_response(content=text, attachments=[file], allowed_mentions=NO_MENTIONS)


def has_same_noise(parent: JobView, view: JobView, index: int) -> bool:
    """Return whether `view` is a remix whose picture has the noise of the same picture of `parent`."""
    if not (view.action == "remix" and isinstance(parent.task, Recipe) and isinstance(view.task, Recipe)):
        return False
    has_picture = any(picture.index == index for picture in parent.pictures)
    return has_picture and noise_seed(parent.task, index) == noise_seed(view.task, index)
