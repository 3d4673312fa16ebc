"""Building blocks of cards: buttons and selects that carry everything in their ids, and texts that fit.

Knows discord's components and their limits; knows nothing of rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import discord
from discord import ui

ID_PREFIX = "settings"
LAYOUT_CHARACTERS = 3900  # characters of text that one layout may hold, of Discord's 4000
# Discord's limits: options of a select, characters of a label, of a description
MAX_OPTIONS = 25
LABEL_LENGTH = 100
DESCRIPTION_LENGTH = 100
Style = discord.ButtonStyle


def component_id(verb: str, *parts: object) -> str:
    """Return the id of a component: `settings:<verb>:<part>:…`."""
    return ":".join((ID_PREFIX, verb, *(str(part) for part in parts)))


def make_button(
    label: str, verb: str, *parts: object, style: Style = Style.secondary, disabled: bool = False
) -> ui.Button[Any]:
    """Return a button; its id says what it does."""
    return ui.Button(label=label, style=style, custom_id=component_id(verb, *parts), disabled=disabled)


def select(placeholder: str, options: Iterable[tuple[str, str, str]], verb: str, *parts: object) -> ui.ActionRow[Any]:
    """Return a row with a select; options are (value, label, description), of which the first 25 are offered."""
    select_options = [
        discord.SelectOption(
            value=value, label=label[:LABEL_LENGTH], description=description[:DESCRIPTION_LENGTH] or None
        )
        for value, label, description in options
    ][:MAX_OPTIONS]
    menu = ui.Select[Any](placeholder=placeholder, options=select_options, custom_id=component_id(verb, *parts))
    return ui.ActionRow(menu)


def make_row(*buttons: ui.Button[Any]) -> ui.ActionRow[Any]:
    return ui.ActionRow(*buttons)


def make_layout(*items: ui.Item[Any], colour: int | None = None) -> ui.LayoutView:
    """Return a card of one container, so that it reads as one thing."""
    view = ui.LayoutView(timeout=None)
    view.add_item(ui.Container(*items, accent_colour=colour))
    return view


def make_text(*lines: str) -> ui.TextDisplay[Any]:
    return ui.TextDisplay("\n".join(lines))


def text_with_button(line: str, accessory: ui.Button[Any]) -> ui.Section[Any]:
    """Return a text with a button at its right."""
    return ui.Section(ui.TextDisplay(line), accessory=accessory)


def make_pager(verb: str, *parts: object, page: int, pages: int) -> list[ui.ActionRow[Any]]:
    """Return buttons back and forth, if there is more than one page; pages count from 0."""
    if pages <= 1:
        return []
    previous_button = make_button("◀", verb, *parts, page - 1, disabled=page <= 0)
    next_button = make_button("▶", verb, *parts, page + 1, disabled=page >= pages - 1)
    page_button = make_button(f"{page + 1} of {pages}", "nothing", disabled=True)
    return [make_row(previous_button, page_button, next_button)]
