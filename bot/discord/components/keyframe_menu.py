"""The menu of keyframes under a contact sheet: choosing one opens the form for what changes from there on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import discord
from discord import ui

from bot.discord.checks import require_permission
from bot.discord.components.forms import MAX_PROMPT, create_form, form_id, open_form, prompt_without_flags, text_field
from bot.discord.components.picture_select import PictureSelect
from bot.domain.errors import UserError
from bot.domain.texts import percent_done
from engine.contract import Recipe

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView

CONTINUE_HINT = "The job stopped here: without changes, the branch finishes it"


class KeyframeMenu(PictureSelect, prefix="rungs"):
    """Keyframes of one picture, of a job of `total_steps` steps; with `stopped_early`, the last can be continued."""

    def __init__(
        self, job: str, index: int, steps: Sequence[int] = (), total_steps: int = 0, stopped_early: bool = False
    ) -> None:
        options = [
            discord.SelectOption(
                label=f"Step {step} of {total_steps} · {percent_done(step, total_steps)} %", value=str(step)
            )
            for step in steps
        ]
        if stopped_early and options:
            options[-1].description = CONTINUE_HINT
        super().__init__(job, index, "Branch at", options)

    async def handle_choice(self, interaction: discord.Interaction[DarkroomClient], choice: str) -> None:
        """Open the form for a branch at the chosen step."""
        if not re.fullmatch(r"[0-9]{1,4}", choice):
            raise UserError("That is no step. Please open the menu once more.")
        view = await interaction.client.services.job_views.load_view(self.job)
        await require_permission(interaction, "branch", view)
        await open_form(interaction, build_branch_form(view, self.index, int(choice)))


def build_branch_form(view: JobView, index: int, step: int) -> ui.Modal:
    """Return the form for what changes from that step on, filled in with the prompt."""
    modal = create_form(f"Branch picture {index + 1} at step {step}", form_id("branch", view.id, "", index, step))
    prompt_help = "Another prompt from this step on; if unchanged, a seed makes the difference"
    modal.add_item(
        text_field(
            "prompt",
            "Prompt",
            prompt_help,
            value=prompt_without_flags(view, step),
            max_length=MAX_PROMPT,
            required=False,
        )
    )
    modal.add_item(
        text_field("seed", "Seed", "Another one draws new noise", max_length=10, required=False, single_line=True)
    )
    if isinstance(view.task, Recipe):
        steps_help = f"{view.task.steps} in all so far; more or fewer change the rest"
        modal.add_item(text_field("steps", "Steps", steps_help, max_length=4, required=False, single_line=True))
    modal.add_item(
        text_field(
            "guidance", "Guidance", "1 to 30; empty for the same", max_length=8, required=False, single_line=True
        )
    )
    return modal
