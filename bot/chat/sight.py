"""Which jobs a member may know of: not those of channels that they cannot see. To them such a job is a private one.

A thread counts as its channel. A channel that is gone was seen by nobody knows whom: its jobs are for admins.
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
    """Whether a member may look into a channel of their server, as far as the server's channels are known."""
    if not isinstance(user, discord.Member) or not channel.isdecimal():
        return True  # a direct conversation, or a job from before channels were noted
    found = user.guild.get_channel_or_thread(int(channel))
    try:
        return user.guild_permissions.administrator if found is None else found.permissions_for(user).view_channel
    except discord.ClientException:  # a thread whose channel is not known
        return False


def covered(view: View, user: discord.abc.User) -> View:
    """The job as it is to this member: as good as private where they cannot see its channel, unless it is theirs."""
    if view.private or view.member_id == f"discord:{user.id}" or not _here(view, user) or sees(user, view.channel):
        return view
    return replace(view, private=True)


def _here(view: View, user: discord.abc.User) -> bool:
    """A job of another server is out of reach for another reason."""
    return isinstance(user, discord.Member) and view.guild == f"discord:{user.guild.id}"


def why(reason: str, view: View | None) -> str:
    """The sentence for a refusal about a job that may have been covered."""
    return UNSEEN if reason == PRIVATE and view is not None and not view.private else reason
