"""The inpainting form of a picture: a mask, a prompt and a strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.chat.answer import answer
from bot.chat.brought import remote
from bot.chat.presses.forms import Filled, form, line, named, upload
from bot.chat.presses.words import LONGEST, unchanged, words_of
from bot.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    import discord
    from discord import ui

    from bot.chat.client import DarkroomClient
    from bot.views import Member, Place, Ticket, View

MASK = "A picture of the same shape: white is redrawn, black stays"
LEAST = 0.05


def edit_form(view: View, index: int) -> ui.Modal:
    """Return the form for one picture, filled in with its prompt."""
    modal = form(f"Edit picture {index + 1}", named("edit", view.id, index=index))
    modal.add_item(upload("mask", "Mask", MASK))
    modal.add_item(line("prompt", "Prompt", "What to show there", value=words_of(view), most=LONGEST, required=False))
    modal.add_item(line("strength", "Strength", "0.05 to 1; empty for 0.9", most=8, required=False, short=True))
    return modal


async def edit(interaction: discord.Interaction[DarkroomClient], filled: Filled, view: View) -> None:
    """Submit the form."""
    masks, text = filled.files.get("mask", ()), filled.fields.get("prompt", "")

    async def ask(member: Member, place: Place) -> Sequence[Ticket]:
        strength = _fraction(filled.fields.get("strength", ""))
        if not masks:
            raise Refused("Which part? Add a mask, a picture whose white parts are redrawn.")
        made = await interaction.client.studio.edit(
            view.id, filled.index or 0, remote(masks[0]), member, place,
            text=None if unchanged(text, view) else text, strength=strength, key=f"form:{interaction.id}",
        )  # fmt: skip
        return [made]

    await answer(interaction, ask)


def _fraction(text: str) -> float | None:
    """Return the strength; None if it is empty. Raises `Refused`."""
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = 0.0
    if not LEAST <= value <= 1:
        raise Refused(f"The strength is a number from {LEAST:g} to 1.")
    return value
