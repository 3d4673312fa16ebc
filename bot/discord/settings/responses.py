"""One way to answer an admin: check the permission, do the work, and show its result to them only.

Every card is stateless: its buttons and selects carry everything in their ids, by which `dispatch_press` finds the
handler. discord.py would keep every card and form in memory, also dismissed ones, and lose them all with the process.
Knows discord and the permission table; knows nothing of rules.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import discord
from discord import ui

from bot.discord.cards.job_cards import render_refusal
from bot.discord.responses import DEFER_AFTER, NO_MENTIONS, check_rate, member_of, send_error
from bot.domain.errors import UserError
from bot.policy.permissions import Action, forbidden_reason
from bot.policy.rules.rule import SCOPES, Scope

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import Member
    from bot.services import Services
    from bot.services.rule_admin import RuleAdmin

log = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")
Entry = TypeVar("Entry")

TOO_SLOW = "That took too long to open. Please try again."
UNKNOWN_CARD = "This card is of another version of the bot. /settings show opens a new one."
SELECT_FIELD = ""  # the field name of a select's choice
ID_PREFIX = "settings"
LAYOUT_CHARACTERS = 3900  # characters of text that one layout may hold, of Discord's 4000
# Discord's limits: options of a select, characters of a label or a description
MAX_OPTIONS = 25
LABEL_LENGTH = 100
Style = discord.ButtonStyle


@dataclass(frozen=True)
class Request:
    """What an admin asks for, by a command or a press."""

    interaction: Interaction
    member: Member

    @property
    def services(self) -> Services:
        return self.interaction.client.services

    @property
    def rules(self) -> RuleAdmin:
        return self.services.rule_admin


@dataclass(frozen=True)
class Reply:
    """An ephemeral message: a layout, or text with buttons; and files. `as_new_message`: never replaces the card."""

    content: str | None = None
    view: ui.LayoutView | ui.View | None = None
    files: tuple[discord.File, ...] = ()
    as_new_message: bool = False


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

    def number_at(self, index: int = -1) -> int:
        """Return a whole number in the id; 0 if it is none."""
        part = self.parts[index] if -len(self.parts) <= index < len(self.parts) else ""
        return int(part) if part.isascii() and part.isdigit() else 0


PressHandler = Callable[["Interaction", CardPress], Awaitable[None]]
ReplyBuilder = Callable[Concatenate[Request, Arguments], Awaitable[Reply | ui.Modal]]
HANDLERS: dict[str, PressHandler] = {}  # by the verb in a component's id


def answers(
    action: Action, verb: str = ""
) -> Callable[[ReplyBuilder[Arguments]], Callable[Concatenate[Interaction, Arguments], Coroutine[Any, Any, None]]]:
    """Make a handler of a function that builds a reply: it checks the permission to `action`, and shows the reply.

    `verb`: in the ids of the buttons, selects and forms whose presses it handles.
    """

    def decorate(
        build_reply: ReplyBuilder[Arguments],
    ) -> Callable[Concatenate[Interaction, Arguments], Coroutine[Any, Any, None]]:
        async def handle(interaction: Interaction, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            member = member_of(interaction)
            reason = forbidden_reason(action, member, in_direct_message=interaction.guild_id is None)
            if reason is not None:
                await _send_refusal(interaction, reason)
                return
            await _respond(interaction, build_reply(Request(interaction, member), *args, **kwargs))

        if verb:
            HANDLERS[verb] = cast(PressHandler, handle)
        return handle

    return decorate


async def _respond(interaction: Interaction, pending_reply: Awaitable[Reply | ui.Modal]) -> None:
    try:
        reply = await _defer_if_slow(interaction, pending_reply)
    except UserError as error:
        await _send_refusal(interaction, error.sentence)
        return
    if isinstance(reply, Reply):
        await _send_reply(interaction, reply)
    elif interaction.response.is_done():  # a form must be the first response, but that was deferred
        await _send_refusal(interaction, TOO_SLOW)
    else:
        reply.stop()  # found by its id: nothing to listen for
        await interaction.response.send_modal(reply)


async def _send_refusal(interaction: Interaction, sentence: str) -> None:
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
    values = {"content": reply.content, "view": reply.view, "files": list(reply.files) or None}
    content: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if response.is_done():
        await interaction.followup.send(ephemeral=True, allowed_mentions=NO_MENTIONS, **content)
    elif interaction.message is None or reply.as_new_message:
        await response.send_message(ephemeral=True, allowed_mentions=NO_MENTIONS, **content)
    else:
        await response.edit_message(
            content=reply.content, view=reply.view, attachments=list(reply.files), allowed_mentions=NO_MENTIONS
        )


async def dispatch_press(interaction: Interaction) -> None:
    """Do what a press on one of our cards asks for; ignore other interactions."""
    data: Any = interaction.data or {}
    prefix, _, rest = str(data.get("custom_id", "")).partition(":")
    if prefix != ID_PREFIX:
        return
    name, *parts = rest.split(":")
    handler = HANDLERS.get(name)
    try:
        check_rate(interaction, "settings")
        if handler is None:
            await _send_refusal(interaction, UNKNOWN_CARD)
        else:
            await handler(interaction, _parse_press(parts, data))
    except UserError as refusal:
        await _send_refusal(interaction, refusal.sentence)
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


def parse_scope(text: str) -> Scope:
    """Return the text, of an id, as the scope of a rule. Raises `UserError`: it may be of another version."""
    for scope in SCOPES:
        if scope == text:
            return scope
    raise UserError(UNKNOWN_CARD)


def component_id(verb: str, *parts: object) -> str:
    """Return the id of a component: `settings:<verb>:<part>:…`."""
    return ":".join((ID_PREFIX, verb, *(str(part) for part in parts)))


def make_button(
    label: str, verb: str, *parts: object, style: Style = Style.secondary, disabled: bool = False
) -> ui.Button[Any]:
    """Return a button; its id says what it does."""
    return ui.Button(label=label, style=style, custom_id=component_id(verb, *parts), disabled=disabled)


def make_select(
    placeholder: str, options: Iterable[tuple[str, str, str]], verb: str, *parts: object
) -> ui.ActionRow[Any]:
    """Return a row with a select; options are (value, label, description), of which the first 25 are offered."""
    select_options = [
        discord.SelectOption(value=value, label=label[:LABEL_LENGTH], description=description[:LABEL_LENGTH] or None)
        for value, label, description in options
    ][:MAX_OPTIONS]
    menu = ui.Select[Any](placeholder=placeholder, options=select_options, custom_id=component_id(verb, *parts))
    return ui.ActionRow(menu)


def make_layout(*items: ui.Item[Any], colour: int | None = None) -> ui.LayoutView:
    """Return a card of one container, so that it reads as one thing."""
    view = ui.LayoutView(timeout=None)
    view.add_item(ui.Container(*items, accent_colour=colour))
    return view


def make_text(*lines: str) -> ui.TextDisplay[Any]:
    return ui.TextDisplay("\n".join(lines))


def cut_page(entries: Sequence[Entry], page: int, length: int) -> tuple[Sequence[Entry], int, int]:
    """Return the entries of a page, its number, and the number of pages; pages count from 0."""
    pages = max(1, -(-len(entries) // length))
    page = max(0, min(page, pages - 1))
    return entries[page * length : (page + 1) * length], page, pages


def make_pager(verb: str, *parts: object, page: int, pages: int) -> list[ui.ActionRow[Any]]:
    """Return buttons back and forth, if there is more than one page."""
    if pages <= 1:
        return []
    previous_button = make_button("◀", verb, *parts, page - 1, disabled=page <= 0)
    next_button = make_button("▶", verb, *parts, page + 1, disabled=page >= pages - 1)
    page_button = make_button(f"{page + 1} of {pages}", "nothing", disabled=True)
    return [ui.ActionRow(previous_button, page_button, next_button)]
