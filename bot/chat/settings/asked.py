"""One way to answer an admin: check the permission, do the work, and show its result to them only.

Every card is stateless: its buttons and selects carry all in their ids and are found by `presses`, so a card is never
kept in memory. Knows discord and the permission table; knows nothing of rules.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

from bot.access import Action, forbidden
from bot.chat.answer import SOON, member_of
from bot.chat.presenter import refusal
from bot.chat.quiet import QUIET
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Member

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)
LATE = "That took too long to open. Please try again."


@dataclass(frozen=True)
class Shown:
    """An ephemeral message: a layout, or a text with buttons; and files. `fresh`: never in place of the card."""

    content: str | None = None
    view: ui.LayoutView | ui.View | None = None
    files: tuple[discord.File, ...] = ()
    fresh: bool = False


Work = Callable[["Member"], Awaitable[Shown | ui.Modal]]


async def respond(interaction: Interaction, action: Action, work: Work) -> None:
    """Do `work` if the member may `action`, and show its result; show a refusal as its sentence."""
    member = member_of(interaction)
    reason = forbidden(action, member, direct=interaction.guild_id is None)
    if reason is not None:
        await tell(interaction, reason)
        return
    try:
        shown = await _in_time(interaction, work(member))
    except Refused as refused:
        await tell(interaction, refused.sentence)
        return
    if isinstance(shown, ui.Modal):
        if interaction.response.is_done():  # a form must be the first response, and that was deferred
            await tell(interaction, LATE)
            return
        shown.stop()  # found by its id: there is nothing to listen to
        await interaction.response.send_modal(shown)
        return
    await _show(interaction, shown)


async def tell(interaction: Interaction, sentence: str) -> None:
    """Show a refusal to the member only."""
    await _show(interaction, Shown(content=refusal(sentence), fresh=True))


async def _in_time(interaction: Interaction, asked: Awaitable[Shown | ui.Modal]) -> Shown | ui.Modal:
    task = asyncio.ensure_future(asked)
    done, _ = await asyncio.wait({task}, timeout=SOON)
    if not done:
        await interaction.response.defer(ephemeral=True, thinking=True)
    return await task


async def _show(interaction: Interaction, shown: Shown) -> None:
    if shown.view is not None:
        shown.view.stop()  # found by its ids: there is nothing to listen to
    response = interaction.response
    if response.is_done():
        await interaction.followup.send(ephemeral=True, allowed_mentions=QUIET, **_sent(shown))
    elif interaction.message is None or shown.fresh:
        await response.send_message(ephemeral=True, allowed_mentions=QUIET, **_sent(shown))
    else:
        await response.edit_message(
            content=shown.content, view=shown.view, attachments=list(shown.files), allowed_mentions=QUIET
        )


def _sent(shown: Shown) -> dict[str, Any]:
    """Return the arguments of a new message; discord.py wants absent ones left out."""
    named = {"content": shown.content, "view": shown.view, "files": list(shown.files) or None}
    return {name: value for name, value in named.items() if value is not None}
