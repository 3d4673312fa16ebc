"""Channel visibility: jobs of channels that a member cannot see count as private ones for them.

A thread counts as its channel. Nobody knows who saw a deleted channel: its jobs are for admins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import discord

from bot.access import PRIVATE

if TYPE_CHECKING:
    from bot.views import View

UNSEEN = "That job belongs to a channel that you cannot see."


def sees(user: discord.abc.User, channel: str) -> bool:
    """Return whether a member can view a channel of their server, as far as its channels are cached."""
    if not isinstance(user, discord.Member) or not channel.isdecimal():
        return True  # a direct conversation, or a job from before channels were recorded
    found = user.guild.get_channel_or_thread(int(channel))
    try:
        return user.guild_permissions.administrator if found is None else found.permissions_for(user).view_channel
    except discord.ClientException:  # a thread whose channel is not cached
        return False


def covered(view: View, user: discord.abc.User) -> View:
    """Return the job as this member may see it: private if they cannot see its channel, unless it is theirs."""
    if view.private or view.member_id == f"discord:{user.id}" or not _here(view, user) or sees(user, view.channel):
        return view
    return replace(view, private=True)


def _here(view: View, user: discord.abc.User) -> bool:
    """Return whether the job is of this server; another check refuses those of other servers."""
    return isinstance(user, discord.Member) and view.guild == f"discord:{user.guild.id}"


def why(reason: str, view: View | None) -> str:
    """Return the sentence for a refusal about a job that `covered` may have made private."""
    return UNSEEN if reason == PRIVATE and view is not None and not view.private else reason
