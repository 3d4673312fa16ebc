"""The menu of keyframes under a contact sheet: choosing one opens the form for what changes from there on."""

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

ONWARD = "The job stopped here: without changes, the branch finishes it"


class Rungs(
    ui.DynamicItem[ui.Select[Any]], template=r"rungs:(?P<job>[0-9A-HJKMNP-TV-Z]{26}):(?P<index>[0-3])"
):  # fmt: skip
    """Keyframes of one picture, of a job of `of` steps; with `stopped`, the last one can be continued."""

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
            log.exception("job %s: a keyframe of it could not be chosen", self.job)
            await sorry(interaction)

    async def _open(self, interaction: discord.Interaction[DarkroomClient]) -> None:
        chosen = str(((interaction.data or {}).get("values") or [""])[0])
        if not re.fullmatch(r"[0-9]{1,4}", chosen):
            raise Refused("That is no step. Please open the menu once more.")
        view = await interaction.client.studio.view(self.job)
        await permit(interaction, "branch", view)
        await open_form(interaction, branch_form(view, self.index, int(chosen)))


def branch_form(view: View, index: int, step: int) -> ui.Modal:
    """Return the form for what changes from that step on, filled in with the prompt."""
    modal = form(f"Branch picture {index + 1} at step {step}", named("branch", view.id, "", index, step))
    words = "Another prompt from this step on; if unchanged, a seed makes the difference"
    modal.add_item(line("prompt", "Prompt", words, value=words_of(view), most=LONGEST, required=False))
    modal.add_item(line("seed", "Seed", "Another one draws new noise", most=10, required=False, short=True))
    if isinstance(view.recipe, Recipe):
        about = f"{view.recipe.steps} in all so far; more or fewer change the rest"
        modal.add_item(line("steps", "Steps", about, most=4, required=False, short=True))
    modal.add_item(line("guidance", "Guidance", "1 to 30; empty for the same", most=8, required=False, short=True))
    return modal
