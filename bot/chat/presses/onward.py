"""Presses that make a job of a job: U, V, another seed, and a prompt form for any of them.

A double click makes one job: both presses use the same key. The permission was checked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from bot.chat.answer import answer, member_of
from bot.chat.presses.forms import Filled, form, line, named, open_form
from bot.chat.presses.once import once
from bot.chat.presses.words import LONGEST, words_of
from bot.desk.further import STRENGTHS
from bot.refused import Refused
from engine.job import Recipe

if TYPE_CHECKING:
    import discord
    from discord import ui

    from bot.chat.client import DarkroomClient
    from bot.chat.rows import Button
    from bot.desk.preferences import Preference
    from bot.desk.studio import Studio
    from bot.views import Member, Place, Ticket, View

    Interaction = discord.Interaction[DarkroomClient]

How = Literal["same", "subtle", "strong", "roll"]

# The noise of a remix: the same noise, noise at some distance from one picture's, or new noise.
DISTANCES: Mapping[str, float | None] = MappingProxyType({"same": None, **STRENGTHS, "roll": 1.0})
TITLES: Mapping[How, str] = MappingProxyType(
    {"same": "Remix", "subtle": "Vary subtly", "strong": "Vary strongly", "roll": "Roll again"}
)


async def go_on(interaction: Interaction, button: Button, view: View) -> None:
    """Submit the button's job, or open the prompt form if the button or the member's preference says so."""
    preference = await interaction.client.desk.preferences.of(member_of(interaction).id)
    how = _how(button, preference)
    if button.press == "remix" or (preference.remix and how is not None):
        await open_form(interaction, remix_form(view, how or "same", button.index))
    else:
        await _ask(interaction, button, how)


async def remix(interaction: Interaction, filled: Filled, view: View) -> None:
    """Submit the form."""
    if filled.how not in DISTANCES:
        raise Refused("This form is of an older version of the bot. Please press the button once more.")
    words, negative = filled.fields.get("prompt", ""), filled.fields.get("negative", "")
    key, distance = f"form:{interaction.id}", DISTANCES[filled.how]

    async def ask(member: Member, place: Place) -> Sequence[Ticket]:
        return await interaction.client.studio.remix(
            view.id, filled.index, words, member, place, key=key, strength=distance, negative=negative
        )

    await answer(interaction, ask)


def _how(button: Button, preference: Preference) -> How | None:
    """Return how far the noise is from the parent's; None for an upscale."""
    if button.press == "up":
        return None
    if button.press == "reroll":
        return "roll"
    if button.press == "remix" and button.index is None:
        return "same"
    return button.press if button.press in ("subtle", "strong") else preference.variation


def remix_form(view: View, how: How, index: int | None) -> ui.Modal:
    """Return the form, filled in with the prompt; typed flags are in the recipe already."""
    negative = view.recipe.negative if isinstance(view.recipe, Recipe) else ""
    which = "" if index is None or how in ("same", "roll") else f" picture {index + 1}"
    modal = form(f"{TITLES[how]}{which}", named("remix", view.id, how, index))
    modal.add_item(line("prompt", "Prompt", "Flags like --steps 40 work here too", value=words_of(view), most=LONGEST))
    modal.add_item(
        line("negative", "Steer away from", "Empty for nothing", value=negative, most=LONGEST, required=False)
    )
    return modal


async def _ask(interaction: Interaction, button: Button, how: How | None) -> None:
    async def make(member: Member, place: Place, key: str) -> Ticket:
        return await _asked(interaction.client.studio, button, how, member, place, key)

    await once(interaction, button.id, make)


async def _asked(studio: Studio, button: Button, how: How | None, member: Member, place: Place, key: str) -> Ticket:
    if how == "roll" or button.index is None:
        return await studio.reroll(button.job, member, place, key=key)
    if how is None:
        return await studio.upscale(button.job, button.index, member, place, key=key)
    strength = STRENGTHS["strong" if how == "strong" else "subtle"]
    return await studio.vary(button.job, button.index, member, place, key=key, strength=strength)
