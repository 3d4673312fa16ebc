"""A direct message with the pictures of a finished job, each as its own file, and their parameters.

The permission was checked before. Knows the desk and the client; knows nothing of reactions.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import discord

from bot.chat.called import WORDLESS
from bot.chat.delivery import ENDING, UPLOAD
from bot.chat.details import parameters
from bot.chat.notices import link
from bot.chat.presenter import ALT
from bot.chat.quiet import QUIET
from bot.images import grid
from bot.refused import Refused
from bot.sentences import quoted, shortened

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import View


async def send(client: DarkroomClient, view: View, user: int) -> None:
    """Send the pictures that may be shown, if any. Raises `discord.Forbidden` if direct messages are closed."""
    if view.state != "finished" or view.deleted is not None:
        return
    files = await _files(client, view)
    if not files:
        return
    where = (await client.desk.deliveries.place_of(view.id)).where
    channel = await client.create_dm(discord.Object(user))
    await channel.send(_letter(view, link(where)), files=files, allowed_mentions=QUIET)


async def _files(client: DarkroomClient, view: View) -> list[discord.File]:
    """Return each picture that may be shown, together within the upload limit of every conversation."""
    found: list[discord.File] = []
    for shot in view.pictures:
        try:
            content = await client.studio.picture(view.id, shot.index)
        except Refused:  # held by the picture check, or not kept any more
            continue
        fitting = await asyncio.to_thread(grid.under, content, UPLOAD // len(view.pictures))
        if fitting is not None:
            payload, form = fitting
            name = f"darkroom-{view.id}-{shot.index + 1}.{ENDING[form]}"
            found.append(discord.File(io.BytesIO(payload), name, description=shortened(view.prompt, ALT)))
    return found


def _letter(view: View, address: str) -> str:
    head = f"✉️ **{quoted(view.prompt or WORDLESS, 600)}** · {quoted(view.member_name, 64)}"
    made = quoted(parameters(view).splitlines()[-1], 600)
    return "\n".join(part for part in (head, made, f"-# Job `{view.id}`", address) if part)
