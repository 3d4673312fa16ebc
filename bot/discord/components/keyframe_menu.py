"""The menu of keyframes under a contact sheet: choosing one opens the form for what changes from there on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.discord.checks import reply_on_error, require_permission
from bot.discord.components.forms import MAX_PROMPT, create_form, form_id, open_form, prompt_without_flags, text_field
from bot.discord.responses import send_error
from bot.domain.errors import UserError
from bot.domain.texts import percent_done
from engine.contract import Recipe

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView

log = logging.getLogger(__name__)

CONTINUE_HINT = "The job stopped here: without changes, the branch finishes it"


class KeyframeMenu(
    ui.DynamicItem[ui.Select[Any]], template=r"rungs:(?P<job>[0-9A-HJKMNP-TV-Z]{26}):(?P<index>[0-3])"
):  # fmt: skip
    """Keyframes of one picture, of a job of `total_steps` steps; with `stopped_early`, the last can be continued."""

    def __init__(
        self, job: str, index: int, steps: Sequence[int] = (), total_steps: int = 0, stopped_early: bool = False
    ) -> None:  # fmt: skip
        options = [
            discord.SelectOption(
                label=f"Step {step} of {total_steps} · {percent_done(step, total_steps)} %", value=str(step)
            )
            for step in steps
        ]
        if stopped_early and options:
            options[-1].description = CONTINUE_HINT
        super().__init__(ui.Select(placeholder="Branch at", options=options, custom_id=f"rungs:{job}:{index}"))
        self.job, self.index = job, index

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(match["job"], int(match["index"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        try:
            async with reply_on_error(interaction):
                await self._open_branch_form(interaction)
        except Exception:
            log.exception("job %s: a keyframe of it could not be chosen", self.job)
            await send_error(interaction)

    async def _open_branch_form(self, interaction: discord.Interaction[DarkroomClient]) -> None:
        step = str(((interaction.data or {}).get("values") or [""])[0])
        if not re.fullmatch(r"[0-9]{1,4}", step):
            raise UserError("That is no step. Please open the menu once more.")
        view = await interaction.client.services.job_views.load_view(self.job)
        await require_permission(interaction, "branch", view)
        await open_form(interaction, build_branch_form(view, self.index, int(step)))


def build_branch_form(view: JobView, index: int, step: int) -> ui.Modal:
    """Return the form for what changes from that step on, filled in with the prompt."""
    modal = create_form(f"Branch picture {index + 1} at step {step}", form_id("branch", view.id, "", index, step))
    prompt_help = "Another prompt from this step on; if unchanged, a seed makes the difference"
    modal.add_item(
        text_field(
            "prompt", "Prompt", prompt_help, value=prompt_without_flags(view), max_length=MAX_PROMPT, required=False
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
