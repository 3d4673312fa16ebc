"""Routing of presses, choices and submitted forms by their custom ids alone, so that they work after any restart.

discord.py would keep every card and every form that somebody opened and dismissed in memory, and lose them all with the
process. Here, nothing is kept: the client hands every interaction to `pressed`, which knows its own by the prefix.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import discord

from bot.chat.answer import sorry
from bot.chat.settings.asked import tell
from bot.chat.settings.parts import PREFIX
from bot.refused import Refused
from bot.rules.rule import SCOPES, Scope

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction

log = logging.getLogger(__name__)
OLD = "This card is of an older version of the bot. /settings show opens a new one."
INTERACTIVE = (discord.InteractionType.component, discord.InteractionType.modal_submit)
CHOSEN = ""  # the field name of a select's choice


@dataclass(frozen=True)
class Press:
    """What was pressed: the parts of its id, the input, and which of the chosen ids are `roles`.

    `filled`: by field, what a form holds; or under `CHOSEN` a select's choice.
    """

    parts: tuple[str, ...]
    filled: Mapping[str, tuple[str, ...]]
    roles: frozenset[str] = frozenset()

    def one(self, field: str = CHOSEN) -> str:
        """Return the only value of a field; empty if it has none."""
        return next(iter(self.filled.get(field, ())), "")

    def scope(self, place: int) -> Scope:
        """Return the scope in the id. Raises `Refused`: the id may be of another version."""
        return as_scope(self.parts[place] if place < len(self.parts) else "")

    def number(self, place: int = -1) -> int:
        """Return a whole number in the id; 0 if it is none."""
        part = self.parts[place] if -len(self.parts) <= place < len(self.parts) else ""
        return int(part) if part.isascii() and part.isdigit() else 0


def as_scope(text: str) -> Scope:
    """Return the text as the scope of a rule. Raises `Refused`."""
    for scope in SCOPES:
        if scope == text:
            return scope
    raise Refused(OLD)


Verb = Callable[["Interaction", Press], Awaitable[None]]


async def dispatch(interaction: Interaction, verbs: Mapping[str, Verb]) -> None:
    """Do what a press on one of our cards asks for; ignore other interactions."""
    data: Any = interaction.data or {}
    prefix, _, rest = str(data.get("custom_id", "")).partition(":")
    if interaction.type not in INTERACTIVE or prefix != PREFIX:
        return
    name, *parts = rest.split(":")
    verb = verbs.get(name)
    try:
        if verb is None:
            await tell(interaction, OLD)
        else:
            await verb(interaction, _press(parts, data))
    except Exception:
        log.exception("a press of %s failed", name)
        await sorry(interaction)


def _press(parts: Iterable[str], data: Any) -> Press:
    resolved = data.get("resolved") or {}
    filled = dict(_filled(data.get("components") or ()))
    if "values" in data:
        filled[CHOSEN] = tuple(data["values"])
    return Press(tuple(parts), filled, frozenset(resolved.get("roles") or ()))


def _filled(nodes: Iterable[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the fields of a form with their values, at any depth."""
    for node in nodes:
        yield from _filled([*node.get("components", ()), *filter(None, [node.get("component")])])
        if "custom_id" in node:
            yield node["custom_id"], tuple(node["values"]) if "values" in node else (node.get("value") or "",)
