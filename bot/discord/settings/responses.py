"""One way to answer an admin: check the permission, do the work, and show its result to them only.

Every card is stateless: its buttons and selects carry everything in their ids, by which `press_dispatch` finds them.
Knows discord and the permission table; knows nothing of rules.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

from bot.discord.cards.job_cards import render_refusal
from bot.discord.responses import DEFER_AFTER, NO_MENTIONS, member_of
from bot.domain.errors import UserError
from bot.policy.permissions import Action, forbidden_reason

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import Member

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)
TOO_SLOW = "That took too long to open. Please try again."


@dataclass(frozen=True)
class Reply:
    """An ephemeral message: a layout, or text with buttons; and files. `as_new_message`: never replaces the card."""

    content: str | None = None
    view: ui.LayoutView | ui.View | None = None
    files: tuple[discord.File, ...] = ()
    as_new_message: bool = False


ReplyBuilder = Callable[["Member"], Awaitable[Reply | ui.Modal]]


async def respond(interaction: Interaction, action: Action, build_reply: ReplyBuilder) -> None:
    """Do `build_reply` if the member may `action`, and show its result; show a refusal as its sentence."""
    member = member_of(interaction)
    reason = forbidden_reason(action, member, in_direct_message=interaction.guild_id is None)
    if reason is not None:
        await send_refusal(interaction, reason)
        return
    try:
        reply = await _defer_if_slow(interaction, build_reply(member))
    except UserError as error:
        await send_refusal(interaction, error.sentence)
        return
    if isinstance(reply, ui.Modal):
        if interaction.response.is_done():  # a form must be the first response, but that was deferred
            await send_refusal(interaction, TOO_SLOW)
            return
        reply.stop()  # found by its id: nothing to listen for
        await interaction.response.send_modal(reply)
        return
    await _send_reply(interaction, reply)


async def send_refusal(interaction: Interaction, sentence: str) -> None:
    """Show a refusal to the member only."""
    await _send_reply(interaction, Reply(content=render_refusal(sentence), as_new_message=True))


async def _defer_if_slow(interaction: Interaction, pending_reply: Awaitable[Reply | ui.Modal]) -> Reply | ui.Modal:
    task = asyncio.ensure_future(pending_reply)
    done, _ = await asyncio.wait({task}, timeout=DEFER_AFTER)
    if not done:
        await interaction.response.defer(ephemeral=True, thinking=True)
    return await task


async def _send_reply(interaction: Interaction, reply: Reply) -> None:
    if reply.view is not None:
        reply.view.stop()  # found by its ids: nothing to listen for
    response = interaction.response
    if response.is_done():
        await interaction.followup.send(ephemeral=True, allowed_mentions=NO_MENTIONS, **_message_arguments(reply))
    elif interaction.message is None or reply.as_new_message:
        await response.send_message(ephemeral=True, allowed_mentions=NO_MENTIONS, **_message_arguments(reply))
    else:
        await response.edit_message(
            content=reply.content, view=reply.view, attachments=list(reply.files), allowed_mentions=NO_MENTIONS
        )


def _message_arguments(reply: Reply) -> dict[str, Any]:
    """Return the arguments of a new message; discord.py wants absent ones left out."""
    arguments = {"content": reply.content, "view": reply.view, "files": list(reply.files) or None}
    return {name: value for name, value in arguments.items() if value is not None}
