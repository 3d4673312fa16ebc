"""A direct message with the pictures of a finished job, each as its own file, and their parameters.

The caller has checked the permission. Knows the services and the client; knows nothing of reactions.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import discord

from bot.discord.cards.details import render_parameters
from bot.discord.cards.job_cards import MAX_ALT, NO_PROMPT
from bot.discord.cards.notices import message_link
from bot.discord.cards.pictures import EXTENSIONS, UPLOAD_LIMIT
from bot.discord.responses import NO_MENTIONS
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord, shorten
from bot.pictures import grid

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView


async def send_pictures(client: DarkroomClient, view: JobView, user_id: int) -> None:
    """Send the pictures that may be shown, if any. Raises `discord.Forbidden` if direct messages are closed."""
    if view.state != "finished" or view.deleted_at is not None:
        return
    files = await _picture_files(client, view)
    if not files:
        return
    target = (await client.services.deliveries.answer_destination(view.id)).address
    channel = await client.create_dm(discord.Object(user_id))
    await channel.send(_render_message(view, message_link(target)), files=files, allowed_mentions=NO_MENTIONS)


async def _picture_files(client: DarkroomClient, view: JobView) -> list[discord.File]:
    """Return the pictures that may be shown, all together within the upload limit of every conversation."""
    files: list[discord.File] = []
    for picture in view.pictures:
        try:
            content = await client.services.gallery.read_picture(view.id, picture.index)
        except UserError:  # held by the picture check, or not kept any more
            continue
        result = await asyncio.to_thread(grid.shrink_to_fit, content, UPLOAD_LIMIT // len(view.pictures))
        if result is not None:
            payload, file_format = result
            name = f"darkroom-{view.id}-{picture.index + 1}.{EXTENSIONS[file_format]}"
            files.append(discord.File(io.BytesIO(payload), name, description=shorten(view.prompt, MAX_ALT)))
    return files


def _render_message(view: JobView, address: str) -> str:
    head = f"✉️ **{escape_discord(view.prompt or NO_PROMPT, 600)}** · {escape_discord(view.member_name, 64)}"
    settings_line = escape_discord(render_parameters(view).splitlines()[-1], 600)
    return "\n".join(part for part in (head, settings_line, f"-# Job `{view.id}`", address) if part)
