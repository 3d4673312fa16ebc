"""What we may do in the channel where somebody asks: refused, or said, at once, not when the picture is done.

An answer is edited by its interaction's token for a quarter of an hour, whatever our permissions are; only its picture
needs one. After that, and for every new message, we need our own. Slow mode does not hold bots up.
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

LATER = {  # what we need once the token is dead or its message is gone, by the names that Discord shows
    "view_channel": "View Channel",
    "send_messages": "Send Messages",
    "read_message_history": "Read Message History",
}
IN_THREADS = "Send Messages in Threads"  # instead of Send Messages


def check_channel(interaction: Interaction) -> None:
    """Raises `Refused` (403) where a picture could not be shown."""
    if interaction.guild_id is not None and not interaction.app_permissions.attach_files:
        raise Refused("I may not show pictures here: I need the permission Attach Files in this channel.", 403)


def warning(interaction: Interaction, eta: float | None, token: float) -> str:
    """What will not work here for a job that is done in `eta` seconds (None: nobody knows); empty if all will.

    `token`: for how many seconds the answer can be edited without any permission.
    """
    lacking = missing(interaction)
    if not lacking or (eta is not None and eta < LONG):
        return ""
    names = " and ".join(lacking) if len(lacking) < 3 else f"{', '.join(lacking[:-1])} and {lacking[-1]}"
    return (
        f"I lack {names} here: I cannot ping you when it is done, and what takes longer than {duration(token)} "
        "comes to you as a direct message instead."
    )


def missing(interaction: Interaction) -> list[str]:
    """The permissions that we would need here later, as Discord calls them."""
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
