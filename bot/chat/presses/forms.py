"""Forms that outlive a restart: what they ask about stands in their id, and nothing of them is kept here.

discord.py would keep every form that somebody opened and dismissed, and forget them all with the process. Knows fields
and ids; knows nothing of what is done with what was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

TITLE, LONGEST = 45, 4000  # Discord's limits: characters of a title, and of what is typed into one field
ID = re.compile(r"(?P<form>[a-z]+)-form:(?P<job>[0-9A-HJKMNP-TV-Z]{26})(?::(?P<how>[a-z]*))?(?::(?P<index>\d{1,9}))?")


@dataclass(frozen=True)
class Filled:
    """A form that was sent: its name, what it was about, and what stands in each field."""

    form: str
    job: str
    how: str
    index: int | None
    fields: dict[str, str]


def named(form: str, job: str, how: str = "", index: int | None = None) -> str:
    """The id of a form."""
    return f"{form}-form:{job}:{how}" + ("" if index is None else f":{index}")


def form(title: str, custom_id: str) -> ui.Modal:
    """An empty one."""
    return ui.Modal(title=title[:TITLE], custom_id=custom_id)


def line(
    name: str, label: str, about: str = "", *, value: str = "", most: int = LONGEST, required: bool = True
) -> ui.Label[Any]:
    """A field for text of any number of lines, filled in already with what fits of `value`."""
    field = ui.TextInput[Any](
        custom_id=name, style=discord.TextStyle.paragraph, default=value[:most] or None, required=required,
        max_length=most,
    )  # fmt: skip
    return ui.Label(text=label, description=about or None, component=field)


async def open_form(interaction: discord.Interaction[DarkroomClient], modal: ui.Modal) -> None:
    """Show it, and forget it: the library's own answer would keep it until it is sent."""
    await interaction.response.send_modal(modal)
    modal.stop()


def filled(interaction: discord.Interaction[Any]) -> Filled | None:
    """What was sent, if it is one of these forms."""
    data: Any = interaction.data or {}
    if interaction.type is not discord.InteractionType.modal_submit:
        return None
    if (match := ID.fullmatch(str(data.get("custom_id", "")))) is None:
        return None
    index = match["index"]
    fields = dict(_fields(data.get("components") or ()))
    return Filled(match["form"], match["job"], match["how"] or "", None if index is None else int(index), fields)


def _fields(nodes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Fields and what stands in them, however deep they lie."""
    for node in nodes:
        yield from _fields([*node.get("components", ()), *filter(None, [node.get("component")])])
        if "custom_id" in node:
            yield node["custom_id"], str(node.get("value") or "")
