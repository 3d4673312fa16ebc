"""Channel visibility: jobs of channels that a member cannot see count as private ones for them.

A thread counts as its channel. Nobody knows who saw a deleted channel: its jobs are for admins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import discord

from bot.policy.permissions import PRIVATE_JOB

if TYPE_CHECKING:
    from bot.domain.dto import JobView

CHANNEL_HIDDEN = "That job belongs to a channel that you cannot see."


def can_see_channel(user: discord.abc.User, channel: str) -> bool:
    """Return whether a member can view a channel of their server, as far as its channels are cached."""
    if not isinstance(user, discord.Member) or not channel.isdecimal():
        return True  # a direct conversation, or a job from before channels were recorded
    guild_channel = user.guild.get_channel_or_thread(int(channel))
    try:
        return (
            user.guild_permissions.administrator
            if guild_channel is None
            else guild_channel.permissions_for(user).view_channel
        )
    except discord.ClientException:  # a thread whose channel is not cached
        return False


def with_channel_privacy(view: JobView, user: discord.abc.User) -> JobView:
    """Return the job as this member may see it: private if they cannot see its channel, unless it is theirs."""
    if (
        view.is_private
        or view.member_id == f"discord:{user.id}"
        or not _is_same_guild(view, user)
        or can_see_channel(user, view.channel)
    ):
        return view
    return replace(view, is_private=True)


def _is_same_guild(view: JobView, user: discord.abc.User) -> bool:
    """Return whether the job is of this server; another check refuses those of other servers."""
    return isinstance(user, discord.Member) and view.guild == f"discord:{user.guild.id}"


def refusal_reason(reason: str, view: JobView | None) -> str:
    """Return the sentence for a refusal about a job that `with_channel_privacy` may have made private."""
    return CHANNEL_HIDDEN if reason == PRIVATE_JOB and view is not None and not view.is_private else reason
