"""Checks the bot's permissions in a channel when a member asks, not when the picture is done; reads a member's.

The interaction's token edits a response for fifteen minutes, whatever the bot's permissions are; only its picture needs
one. Later edits, and every new message, need the bot's own permissions. Slow mode does not limit bots.

Channel visibility: jobs of channels that a member cannot see count as private ones for them.

A public thread counts as its channel. Jobs of a private thread are for those who act inside it: Discord tells the bot
no members of a thread. Nobody knows who saw a deleted channel: its jobs are for admins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import discord

from bot.discord.cards.job_cards import LONG_JOB_SECONDS
from bot.domain.errors import UserError
from bot.domain.texts import format_duration
from bot.policy.permissions import PRIVATE_JOB

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView, Member

    Interaction = discord.Interaction[DarkroomClient]


PERMISSIONS_AFTER_TOKEN = {  # needed once the token has expired or its message is gone; the values are Discord's names
    "view_channel": "View Channel",
    "send_messages": "Send Messages",
    "read_message_history": "Read Message History",
}
SEND_IN_THREADS = "Send Messages in Threads"  # replaces Send Messages


def check_can_attach(interaction: Interaction) -> None:
    """Raise `UserError` (403) if the bot may not attach pictures here."""
    if interaction.guild_id is not None and not interaction.app_permissions.attach_files:
        raise UserError("I may not show pictures here: I need the permission Attach Files in this channel.", 403)


def permission_warning(interaction: Interaction, eta: float | None, token_seconds: float) -> str:
    """Return what will not work here for a job that ends in `eta` seconds (None: unknown); empty if all will.

    `token_seconds`: for how many seconds the response can be edited without any permission.
    """
    missing_names = missing_permissions(interaction)
    if not missing_names or (eta is not None and eta < LONG_JOB_SECONDS):
        return ""
    *first_names, last_name = missing_names
    names = f"{', '.join(first_names)} and {last_name}" if first_names else last_name
    return (
        f"I lack {names} here: I cannot ping you when it is done, and a job that takes longer than "
        f"{format_duration(token_seconds)} comes to you as a direct message instead."
    )


def missing_permissions(interaction: Interaction) -> list[str]:
    """Return the permissions that the bot lacks here for later, as Discord names them."""
    if interaction.guild_id is None:
        return []
    app_permissions = interaction.app_permissions
    channel = interaction.channel
    in_thread = isinstance(channel, discord.Thread)
    required_permissions = dict(PERMISSIONS_AFTER_TOKEN)
    if in_thread:
        del required_permissions["send_messages"]
        required_permissions["send_messages_in_threads"] = SEND_IN_THREADS
        if channel.locked:
            required_permissions["manage_threads"] = "Manage Threads (this one is locked)"
    return [title for name, title in required_permissions.items() if not getattr(app_permissions, name)]


def guild_permissions(user: discord.abc.User) -> discord.Permissions:
    """Return a member's permissions in their server; none in direct conversations, or if its roles are not cached."""
    if not isinstance(user, discord.Member) or user.guild.get_role(user.guild.id) is None:
        return discord.Permissions.none()
    return user.guild_permissions


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
