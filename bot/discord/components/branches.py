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

from bot.discord.cards.job_cards import NO_PROMPT
from bot.discord.components.forms import (
    FormSubmission,
    PictureSelect,
    create_form,
    form_id,
    is_unchanged,
    open_form,
    prompt_field,
    prompt_without_flags,
    short_field,
)
from bot.discord.responses import NO_MENTIONS, member_of, require_permission, respond_with_jobs
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord, percent_done
from bot.pictures.ladder_keyframes import NO_KEYFRAMES
from bot.prompt.flag_aliases import add_suffix
from engine.contract import MAX_STEPS, Recipe

if TYPE_CHECKING:
    from bot.discord.cards.button_layout import Button
    from bot.discord.client import Interaction
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member


MAX_KEYFRAMES = 12  # keyframes
# A job by its id or a link to its message, then optionally a picture and a step.
BRANCH_POINT = re.compile(
    r"(?P<job>[0-9A-Za-z]{26}|\S*/channels/\S+/\d{15,20})(?:/(?P<picture>[1-4]))?(?::(?P<step>\d{1,4}))?\s*"
)
BRANCH_QUESTION = "**{}**\nAt which step shall picture {} branch off? The steps before it stay as they are."


async def open_keyframe_menu(interaction: Interaction, button: Button, view: JobView) -> None:
    """Show the picture's keyframes, as pictures and as a menu, to the presser only. Raises `UserError`."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services = interaction.client.services
    view, index = await _original_picture(interaction, view, button.index or 0)
    steps = await _list_branch_steps(interaction, view, index)
    contact_sheet = await services.gallery.render_contact_sheet(view.id, index)
    menu = ui.View(timeout=None)
    stopped_early = isinstance(view.task, Recipe) and view.task.end_step < view.task.steps
    menu.add_item(KeyframeMenu(view.id, index, spread_steps(steps), view.total_steps, stopped_early))
    menu.stop()  # found by its id, also after a restart
    file = discord.File(
        io.BytesIO(contact_sheet), f"darkroom-{view.id}-keyframes.webp", description="The picture, step by step"
    )
    await interaction.edit_original_response(
        content=BRANCH_QUESTION.format(escape_discord(view.prompt or NO_PROMPT, 300), index + 1),
        attachments=[file],
        view=menu,
        allowed_mentions=NO_MENTIONS,
    )


async def _original_picture(interaction: Interaction, view: JobView, index: int) -> tuple[JobView, int]:
    """Return the generated job and picture; if `view` is an upscale, those of its original. Raises `UserError`."""
    while not isinstance(view.task, Recipe) and view.parent_image is not None:
        job, index = view.parent_image
        view = await interaction.client.services.job_views.load_view(job)
        await require_permission(interaction, "branch", view)
    return view, index


def spread_steps(steps: Sequence[int], limit: int = MAX_KEYFRAMES) -> list[int]:
    """Return at most `limit` of the steps, evenly spaced, the first and the last among them."""
    if len(steps) <= limit:
        return list(steps)
    return [steps[round(position * (len(steps) - 1) / (limit - 1))] for position in range(limit)]


async def submit_branch(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form."""
    index = submission.index or 0
    step = submission.step or 1
    text = submission.fields.get("prompt", "")
    values = {name: submission.fields.get(name, "").strip() for name in ("seed", "steps", "guidance")}
    options: dict[str, Any] = {name: value for name, value in values.items() if value}

    async def submit(member: Member, destination: Destination) -> Sequence[AcceptedJob]:
        prompt = None if is_unchanged(text, view, step) else text
        key = f"form:{interaction.id}"
        services = interaction.client.services
        return [await services.edits.branch(view.id, index, step, member, destination, text=prompt, key=key, **options)]

    await respond_with_jobs(interaction, submit)


async def submit_branch_option(
    interaction: Interaction, branch_point: str, prompt: str, options: Mapping[str, Any]
) -> None:
    """Submit `/imagine branch:`: the prompt applies from a keyframe on."""

    async def submit(member: Member, destination: Destination) -> Sequence[AcceptedJob]:
        services = interaction.client.services
        view, index, step = await _resolve_branch_point(interaction, branch_point)
        full_prompt = add_suffix(prompt, (await services.preferences.load_preference(member.id)).suffix)
        key = f"imagine:{interaction.id}"
        return [
            await services.edits.branch(view.id, index, step, member, destination, text=full_prompt, key=key, **options)
        ]

    await respond_with_jobs(interaction, submit)


async def _resolve_branch_point(interaction: Interaction, branch_point: str) -> tuple[JobView, int, int]:
    """Return the job, picture and step that a member names; without a step, one midway. Raises `UserError`."""
    match = BRANCH_POINT.fullmatch(branch_point.strip())
    services = interaction.client.services
    view = await services.history.find_job(match["job"] if match else branch_point, member_of(interaction))
    await require_permission(interaction, "branch", view)
    view, index = await _original_picture(interaction, view, int(match["picture"] or 1) - 1 if match else 0)
    if match and match["step"]:
        return view, index, min(max(1, int(match["step"])), MAX_STEPS)
    steps = await _list_branch_steps(interaction, view, index)
    return view, index, steps[len(steps) // 2]


async def _list_branch_steps(interaction: Interaction, view: JobView, index: int) -> tuple[int, ...]:
    """Return the steps at which a picture has a keyframe. Raises `UserError` for none."""
    steps = await interaction.client.services.edits.list_branch_steps(view.id, index, member_of(interaction))
    if not steps:
        raise UserError(NO_KEYFRAMES, 404)
    return steps


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

    async def handle_choice(self, interaction: Interaction, choice: str) -> None:
        """Open the form for a branch at the chosen step."""
        if not re.fullmatch(r"[0-9]{1,4}", choice):
            raise UserError("That is no step. Please open the menu once more.")
        view = await interaction.client.services.job_views.load_view(self.job)
        await require_permission(interaction, "branch", view)
        await open_form(interaction, build_branch_form(view, self.index, int(choice)))


def build_branch_form(view: JobView, index: int, step: int) -> ui.Modal:
    """Return the form for what changes from that step on, filled in with the prompt."""
    prompt_help = "Another prompt from this step on; if unchanged, a seed makes the difference"
    fields = [
        prompt_field("prompt", "Prompt", prompt_help, prompt_without_flags(view, step), required=False),
        short_field("seed", "Seed", "Another one draws new noise", 10),
    ]
    if isinstance(view.task, Recipe):
        fields.append(
            short_field("steps", "Steps", f"{view.task.steps} in all so far; more or fewer change the rest", 4)
        )
    fields.append(short_field("guidance", "Guidance", "1 to 30; empty for the same", 8))
    title = f"Branch picture {index + 1} at step {step}"
    return create_form(title, form_id("branch", view.id, "", index, step), *fields)
