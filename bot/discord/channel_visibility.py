"""Channel visibility: jobs of channels that a member cannot see count as private ones for them.

A public thread counts as its channel. Jobs of a private thread are for those who act inside it: Discord tells the bot
no members of a thread. Nobody knows who saw a deleted channel: its jobs are for admins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import discord

from bot.policy.permissions import PRIVATE_JOB

if TYPE_CHECKING:
    from bot.domain.dto import JobView, Member

CHANNEL_HIDDEN = "That job belongs to a channel that you cannot see."
THREAD_HIDDEN = "That job belongs to a private thread: only its members may use it, and only there."


def can_see_channel(user: discord.abc.User, channel: str) -> bool:
    """Return whether a member can view a channel of their server, as far as its channels are cached."""
    if not isinstance(user, discord.Member) or not channel.isdecimal():
        return True  # a direct conversation, or a job whose interaction named no channel
    guild_channel = user.guild.get_channel_or_thread(int(channel))
    try:
        return (
            user.guild_permissions.administrator
            if guild_channel is None
            else guild_channel.permissions_for(user).view_channel
        )
    except discord.ClientException:  # a thread whose channel is not cached
        return False


def private_thread_of(channel: object) -> str:
    """Return the id of a private thread; empty for every other channel."""
    return str(channel.id) if isinstance(channel, discord.Thread) and channel.is_private() else ""


def with_channel_privacy(view: JobView, member: Member) -> JobView:
    """Return the job as this member may see it: private if they cannot see its channel or thread, unless it is theirs.

    Another check refuses jobs of other servers.
    """
    if (
        view.is_private
        or view.member_id == member.id
        or view.guild != member.guild
        or member.can_see_place(view.channel, view.thread)
    ):
        return view
    return replace(view, is_private=True)


def refusal_reason(reason: str, view: JobView | None) -> str:
    """Return the sentence for a refusal about a job that `with_channel_privacy` may have made private."""
    if reason != PRIVATE_JOB or view is None or view.is_private:
        return reason
    return THREAD_HIDDEN if view.thread else CHANNEL_HIDDEN
