"""A member's permissions in the whole server, from their roles and not from one channel's overwrites.

Members easily get rights over a single channel (a room of their own, a voice channel while they are in it). Jobs,
settings and held pictures belong to the whole server.
"""

from __future__ import annotations

import discord


def guild_permissions(user: discord.abc.User) -> discord.Permissions:
    """Return a member's permissions in their server; none in direct conversations, or if its roles are not cached."""
    if not isinstance(user, discord.Member) or user.guild.get_role(user.guild.id) is None:
        return discord.Permissions.none()
    return user.guild_permissions
