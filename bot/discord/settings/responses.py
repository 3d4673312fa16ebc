"""One way to answer an admin: check the permission, do the work, and show its result to them only.

Every card is stateless: its buttons and selects carry everything in their ids, by which `press_dispatch` finds them.
Knows discord and the permission table; knows nothing of rules.

Routing of presses, choices and submitted forms by their custom ids alone, so that they work after any restart.

discord.py would keep every card and form in memory, also dismissed ones, and lose them all with the process. Here,
nothing stays in memory: the client hands every interaction to `dispatch_press`, which knows its own by their prefix.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

from bot.discord.cards.job_cards import render_refusal
from bot.discord.checks import check_rate
from bot.discord.responses import DEFER_AFTER, NO_MENTIONS, member_of, send_error
from bot.discord.settings.ui_parts import ID_PREFIX
from bot.domain.errors import UserError
from bot.policy.permissions import Action, forbidden_reason
from bot.policy.rules.rule import SCOPES, Scope

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


UNKNOWN_CARD = "This card is of another version of the bot. /settings show opens a new one."
HANDLED_TYPES = (discord.InteractionType.component, discord.InteractionType.modal_submit)
SELECT_FIELD = ""  # the field name of a select's choice


@dataclass(frozen=True)
class CardPress:
    """A press: the parts of the component's id, the input, and which of the chosen ids are `roles`.

    `fields`: by field, what a form holds; or under `SELECT_FIELD` a select's choice.
    """

    parts: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]]
    roles: frozenset[str] = frozenset()

    def first_value(self, field: str = SELECT_FIELD) -> str:
        """Return the only value of a field; empty if it has none."""
        return next(iter(self.fields.get(field, ())), "")

    def scope_at(self, index: int) -> Scope:
        """Return the scope in the id. Raises `UserError`: the id may be of another version."""
        return parse_scope(self.parts[index] if index < len(self.parts) else "")

    def number_at(self, index: int = -1) -> int:
        """Return a whole number in the id; 0 if it is none."""
        part = self.parts[index] if -len(self.parts) <= index < len(self.parts) else ""
        return int(part) if part.isascii() and part.isdigit() else 0


def parse_scope(text: str) -> Scope:
    """Return the text as the scope of a rule. Raises `UserError`."""
    for scope in SCOPES:
        if scope == text:
            return scope
    raise UserError(UNKNOWN_CARD)


PressHandler = Callable[["Interaction", CardPress], Awaitable[None]]


async def dispatch_press(interaction: Interaction, handlers: Mapping[str, PressHandler]) -> None:
    """Do what a press on one of our cards asks for; ignore other interactions."""
    data: Any = interaction.data or {}
    prefix, _, rest = str(data.get("custom_id", "")).partition(":")
    if interaction.type not in HANDLED_TYPES or prefix != ID_PREFIX:
        return
    name, *parts = rest.split(":")
    handler = handlers.get(name)
    try:
        check_rate(interaction, "settings")
        if handler is None:
            await send_refusal(interaction, UNKNOWN_CARD)
        else:
            await handler(interaction, _parse_press(parts, data))
    except UserError as refusal:
        await send_refusal(interaction, refusal.sentence)
    except Exception:
        log.exception("a press of %s failed", name)
        await send_error(interaction)


def _parse_press(parts: Iterable[str], data: Any) -> CardPress:
    resolved: Mapping[str, Any] = data.get("resolved") or {}
    fields = dict(_iterate_fields(data.get("components") or ()))
    if "values" in data:
        fields[SELECT_FIELD] = tuple(data["values"])
    return CardPress(tuple(parts), fields, frozenset(resolved.get("roles") or ()))


def _iterate_fields(nodes: Iterable[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the fields of a form with their values, at any depth."""
    for node in nodes:
        yield from _iterate_fields([*node.get("components", ()), *filter(None, [node.get("component")])])
        if "custom_id" in node:
            yield node["custom_id"], tuple(node["values"]) if "values" in node else (node.get("value") or "",)
