"""Permission checks before each command, menu and form: the table of permissions, then the server's rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from bot.access import Action, forbidden, subject_of
from bot.chat.answer import member_of, refuse
from bot.chat.sight import covered, why
from bot.refused import Refused

if TYPE_CHECKING:
    import discord

    from bot.chat.client import DarkroomClient
    from bot.views import Member, View

    Interaction = discord.Interaction[DarkroomClient]

# Each command's and menu's action in the table. Missing ones act on a job and check it themselves.
COMMANDS: Mapping[str, Action] = MappingProxyType(
    {
        "imagine": "imagine", "mix": "imagine", "walk": "imagine", "blend": "blend", "shorten": "prompt",
        "describe": "describe",
        **dict.fromkeys(("fast", "relax", "turbo", "stealth", "public"), "prefer"),
        "queue": "queue", "cancel": "cancel", "mine": "mine", "info": "info", "prefer": "prefer",
        "reproduce": "reproduce", "film": "film", "help": "help",
        "my-data": "export", "forget-me": "forget",
        "Reproduce": "reproduce", "Use as prompt": "prompt", "Details": "details",
    }
)  # fmt: skip
# They make jobs, or cost as much: the desk checks the rules itself.
ADMITTED: tuple[Action, ...] = ("imagine", "blend", "describe", "reproduce")


async def permit(interaction: discord.Interaction[DarkroomClient], action: Action, view: View | None = None) -> Member:
    """Return the member if they may do this (to this job). Raises `Refused` (403)."""
    member = member_of(interaction)
    subject = None if view is None else subject_of(covered(view, interaction.user))
    if reason := forbidden(action, member, subject, direct=interaction.guild_id is None):
        raise Refused(why(reason, view), 403)
    if action not in ADMITTED:
        await interaction.client.desk.administration.allowed(member, action)
    return member


@asynccontextmanager
async def refusing(interaction: Interaction) -> AsyncIterator[None]:
    """Catch a `Refused` from the body and show it to the member only."""
    try:
        yield
    except Refused as refused:
        await refuse(interaction, refused.sentence)
