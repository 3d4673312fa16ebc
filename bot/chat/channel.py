"""Checks of the bot's permissions in a channel, made when a member asks and not when the picture is done.

The interaction's token edits a response for fifteen minutes, whatever the bot's permissions are; only its picture needs
one. Later edits, and every new message, need the bot's own permissions. Slow mode does not limit bots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord

from bot.chat.notices import LONG
from bot.refused import Refused
from bot.sentences import duration

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]

LATER = {  # needed once the token has expired or its message is gone; the values are Discord's names
    "view_channel": "View Channel",
    "send_messages": "Send Messages",
    "read_message_history": "Read Message History",
}
IN_THREADS = "Send Messages in Threads"  # replaces Send Messages


def check_channel(interaction: Interaction) -> None:
    """Raise `Refused` (403) if the bot may not attach pictures here."""
    if interaction.guild_id is not None and not interaction.app_permissions.attach_files:
        raise Refused("I may not show pictures here: I need the permission Attach Files in this channel.", 403)


def warning(interaction: Interaction, eta: float | None, token: float) -> str:
    """Return what will not work here for a job that ends in `eta` seconds (None: unknown); empty if all will.

    `token`: for how many seconds the response can be edited without any permission.
    """
    lacking = missing(interaction)
    if not lacking or (eta is not None and eta < LONG):
        return ""
    names = " and ".join(lacking) if len(lacking) < 3 else f"{', '.join(lacking[:-1])} and {lacking[-1]}"
    return (
        f"I lack {names} here: I cannot ping you when it is done, and a job that takes longer than {duration(token)} "
        "comes to you as a direct message instead."
    )


def missing(interaction: Interaction) -> list[str]:
    """Return the permissions that the bot lacks here for later, as Discord names them."""
    if interaction.guild_id is None:
        return []
    may, channel = interaction.app_permissions, interaction.channel
    in_thread = isinstance(channel, discord.Thread)
    needed = dict(LATER)
    if in_thread:
        del needed["send_messages"]
        needed["send_messages_in_threads"] = IN_THREADS
        if channel.locked:
            needed["manage_threads"] = "Manage Threads (this one is locked)"
    return [shown for name, shown in needed.items() if not getattr(may, name)]
