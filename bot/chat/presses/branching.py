"""Branches: a menu of a picture's keyframes, a form for the changes, and `/imagine branch:`.

Stateless: the menu's id holds the picture, the form's id picture and step. An upscale has no keyframes: its original
has them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

from bot.chat.answer import answer, member_of
from bot.chat.called import WORDLESS
from bot.chat.permitted import permit
from bot.chat.presses.forms import Filled
from bot.chat.presses.rung import Rungs
from bot.chat.presses.words import unchanged
from bot.chat.quiet import QUIET
from bot.images.rungs import NOWHERE
from bot.prompt.suffix import suffixed
from bot.refused import Refused
from bot.sentences import quoted
from engine.job import MAX_STEPS, Recipe

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Member, Place, Ticket, View

    Interaction = discord.Interaction[DarkroomClient]

OFFERED = 12  # keyframes
# A job by its id or a link to its message, then optionally a picture and a step.
WHERE = re.compile(
    r"(?P<job>[0-9A-Za-z]{26}|\S*/channels/\S+/\d{15,20})(?:/(?P<picture>[1-4]))?(?::(?P<step>\d{1,4}))?\s*"
)
QUESTION = "**{}**\nAt which step shall picture {} branch off? The steps before it stay as they are."


async def open_rungs(interaction: Interaction, view: View, index: int) -> None:
    """Show the picture's keyframes, as pictures and as a menu, to the presser only. Raises `Refused`."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    studio = interaction.client.studio
    view, index = await _original(interaction, view, index)
    steps = await studio.steps(view.id, index, member_of(interaction))
    if not steps:
        raise Refused(NOWHERE, 404)
    sheet = await studio.sheet(view.id, index)
    menu = ui.View(timeout=None)
    stopped = isinstance(view.recipe, Recipe) and view.recipe.last < view.recipe.steps
    menu.add_item(Rungs(view.id, index, spread(steps), view.of, stopped))
    menu.stop()  # found by its id, also after a restart
    file = discord.File(io.BytesIO(sheet), f"darkroom-{view.id}-rungs.webp", description="The picture, step by step")
    await interaction.edit_original_response(
        content=QUESTION.format(quoted(view.prompt or WORDLESS, 300), index + 1), attachments=[file], view=menu,
        allowed_mentions=QUIET,
    )  # fmt: skip


async def _original(interaction: Interaction, view: View, index: int) -> tuple[View, int]:
    """Return the generated job and picture of which `view` may be only an upscale. Raises `Refused`."""
    while not isinstance(view.recipe, Recipe) and view.parent is not None:
        job, index = view.parent
        view = await interaction.client.studio.view(job)
        await permit(interaction, "branch", view)
    return view, index


def spread(steps: Sequence[int], most: int = OFFERED) -> list[int]:
    """Return at most `most` of the steps, evenly spaced, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)]


async def branch(interaction: Interaction, filled: Filled, view: View) -> None:
    """Submit the form."""
    index, step, text = filled.index or 0, filled.step or 1, filled.fields.get("prompt", "")
    said = {name: filled.fields.get(name, "").strip() for name in ("seed", "steps", "guidance")}
    options: dict[str, Any] = {name: value for name, value in said.items() if value}

    async def ask(member: Member, place: Place) -> Sequence[Ticket]:
        words, key = None if unchanged(text, view) else text, f"form:{interaction.id}"
        studio = interaction.client.studio
        return [await studio.branch(view.id, index, step, member, place, text=words, key=key, **options)]

    await answer(interaction, ask)


async def typed(interaction: Interaction, where: str, prompt: str, options: Mapping[str, Any]) -> None:
    """Submit `/imagine branch:`: the prompt holds from a keyframe on."""

    async def ask(member: Member, place: Place) -> Sequence[Ticket]:
        desk = interaction.client.desk
        view, index, step = await _meant(interaction, where)
        words = suffixed(prompt, (await desk.preferences.of(member.id)).suffix)
        key = f"imagine:{interaction.id}"
        return [await desk.studio.branch(view.id, index, step, member, place, text=words, key=key, **options)]

    await answer(interaction, ask)


async def _meant(interaction: Interaction, where: str) -> tuple[View, int, int]:
    """Return the job, picture and step that a member names; without a step, one midway. Raises `Refused`."""
    found, desk = WHERE.fullmatch(where.strip()), interaction.client.desk
    view = await desk.shelf.meant(found["job"] if found else where, member_of(interaction))
    await permit(interaction, "branch", view)
    view, index = await _original(interaction, view, int(found["picture"] or 1) - 1 if found else 0)
    if found and found["step"]:
        return view, index, min(max(1, int(found["step"])), MAX_STEPS)
    steps = await desk.studio.steps(view.id, index, member_of(interaction))
    if not steps:
        raise Refused(NOWHERE, 404)
    return view, index, steps[len(steps) // 2]
