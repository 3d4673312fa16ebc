"""The menu of rungs under a contact sheet: choosing one opens the form for what shall be other from there on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.chat.answer import sorry
from bot.chat.permitted import permit, refusing
from bot.chat.presses.forms import form, line, named, open_form
from bot.chat.presses.words import LONGEST, words_of
from bot.refused import Refused
from bot.sentences import percent
from engine.job import Recipe

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import View

log = logging.getLogger(__name__)

ONWARD = "It was stopped: left as it is, it goes on to its end"


class Rungs(
    ui.DynamicItem[ui.Select[Any]], template=r"rungs:(?P<job>[0-9A-HJKMNP-TV-Z]{26}):(?P<index>[0-3])"
):  # fmt: skip
    """Steps of one picture's ladder, `of` so many; with `stopped`, the last of them is where it can be gone on with."""

    def __init__(
        self, job: str, index: int, steps: Sequence[int] = (), of: int = 0, stopped: bool = False
    ) -> None:  # fmt: skip
        options = [
            discord.SelectOption(label=f"Step {step} of {of} · {percent(step, of)} %", value=str(step))
            for step in steps
        ]  # fmt: skip
        if stopped and options:
            options[-1].description = ONWARD
        super().__init__(ui.Select(placeholder="Branch at", options=options, custom_id=f"rungs:{job}:{index}"))
        self.job, self.index = job, index

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(match["job"], int(match["index"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        try:
            async with refusing(interaction):
                await self._open(interaction)
        except Exception:
            log.exception("job %s: a rung of it could not be chosen", self.job)
            await sorry(interaction)

    async def _open(self, interaction: discord.Interaction[DarkroomClient]) -> None:
        chosen = str(((interaction.data or {}).get("values") or [""])[0])
        if not re.fullmatch(r"[0-9]{1,4}", chosen):
            raise Refused("That is no step. Please open the menu once more.")
        view = await interaction.client.studio.view(self.job)
        await permit(interaction, "branch", view)
        await open_form(interaction, branch_form(view, self.index, int(chosen)))


def branch_form(view: View, index: int, step: int) -> ui.Modal:
    """What shall be other from that step on, filled in with the words that there are."""
    modal = form(f"Branch picture {index + 1} at step {step}", named("branch", view.id, "", index, step))
    words = "Other words from this step on; left as they are, a seed makes the difference"
    modal.add_item(line("prompt", "Prompt", words, value=words_of(view), most=LONGEST, required=False))
    modal.add_item(line("seed", "Seed", "Another one draws the noise anew", most=10, required=False, short=True))
    if isinstance(view.recipe, Recipe):
        about = f"{view.recipe.steps} in all so far: more or fewer for what is left"
        modal.add_item(line("steps", "Steps", about, most=4, required=False, short=True))
    modal.add_item(line("guidance", "Guidance", "1 to 30; empty for the same", most=8, required=False, short=True))
    return modal
