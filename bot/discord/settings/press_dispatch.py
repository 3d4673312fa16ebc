"""Routing of presses, choices and submitted forms by their custom ids alone, so that they work after any restart.

discord.py would keep every card and form in memory, also dismissed ones, and lose them all with the process. Here,
nothing stays in memory: the client hands every interaction to `dispatch_press`, which knows its own by their prefix.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import discord

from bot.discord.checks import check_rate
from bot.discord.responses import send_error
from bot.discord.settings.responses import send_refusal
from bot.discord.settings.ui_parts import ID_PREFIX
from bot.domain.errors import UserError
from bot.policy.rules.rule import SCOPES, Scope

if TYPE_CHECKING:
    from bot.discord.settings.responses import Interaction

log = logging.getLogger(__name__)
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
