"""Presses that act on one picture: zoom out, pan, edit, branch, make square, compare.

The permission was checked before. Knows the studio's methods; knows nothing of which buttons are shown where.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from bot.chat.presses import branching, comparing, editing
from bot.chat.presses.forms import open_form
from bot.chat.presses.once import once

if TYPE_CHECKING:
    import discord

    from bot.access import Action
    from bot.chat.client import DarkroomClient
    from bot.chat.rows import Button, Press
    from bot.views import Member, Place, Ticket, View

    Interaction = discord.Interaction[DarkroomClient]

ACTIONS: Mapping[Press, Action] = MappingProxyType(
    {
        "zoomsome": "zoom", "zoomtwice": "zoom", "panleft": "pan", "panright": "pan", "panup": "pan", "pandown": "pan",
        "edit": "edit", "branch": "branch", "square": "zoom", "compare": "details",
    }
)  # fmt: skip
FACTORS: Mapping[Press, float] = MappingProxyType({"zoomsome": 1.5, "zoomtwice": 2.0})
DIRECTIONS: Mapping[Press, Literal["left", "right", "up", "down"]] = MappingProxyType(
    {"panleft": "left", "panright": "right", "panup": "up", "pandown": "down"}
)


async def go_beyond(interaction: Interaction, button: Button, view: View) -> None:
    """Submit the job that the button means, or ask what else it needs. Raises `Refused`."""
    index = button.index or 0
    if button.press == "branch":
        await branching.open_rungs(interaction, view, index)
    elif button.press == "edit":
        await open_form(interaction, editing.edit_form(view, index))
    elif button.press == "compare":
        await comparing.compare(interaction, view, index)
    else:
        await once(interaction, button.id, lambda *who: _made(interaction, button, index, *who))


async def _made(
    interaction: Interaction, button: Button, index: int, member: Member, place: Place, key: str
) -> Ticket:  # fmt: skip
    studio = interaction.client.studio
    if button.press == "square":
        return await studio.square(button.job, index, member, place, key=key)
    if factor := FACTORS.get(button.press):
        return await studio.zoom(button.job, index, factor, member, place, key=key)
    return await studio.pan(button.job, index, DIRECTIONS[button.press], member, place, key=key)
