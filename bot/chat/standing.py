"""What somebody may do in a whole server: their roles decide, not what one channel lets them do.

Members get rights over a single channel easily (a room of their own, a voice channel while they are in it), and jobs,
settings and held pictures are the whole server's.
"""

from __future__ import annotations

import discord


def permissions(user: discord.abc.User) -> discord.Permissions:
    """Of a member in their server; none alone with the bot, and where the server's roles are not known."""
    if not isinstance(user, discord.Member) or user.guild.get_role(user.guild.id) is None:
        return discord.Permissions.none()
    return user.guild_permissions
