"""Presses that act on one picture: zoom out, pan, edit, branch, make square, compare.

The caller has checked the permission. Knows the job service; knows nothing of which buttons a card shows.

A picture beside its source, shown to the presser only.

The caller has checked the permission for the picture; this module checks the one for its source.

Presses that make a job: a double click uses the same key and makes one.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import discord

from bot.discord.attachments import to_remote_file
from bot.discord.cards.job_cards import job_title
from bot.discord.components import branches
from bot.discord.components.forms import (
    MAX_PROMPT,
    FormSubmission,
    create_form,
    form_id,
    is_unchanged,
    open_form,
    prompt_without_flags,
    text_field,
    upload_field,
)
from bot.discord.responses import NO_MENTIONS, require_permission, respond_with_jobs
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from engine.contract import Recipe, noise_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import discord
    from discord import ui

    from bot.discord.cards.button_layout import Button, ButtonKind
    from bot.discord.client import Interaction
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member
    from bot.policy.permissions import Action

    PressSubmitter = Callable[[Member, Destination, str], Awaitable[AcceptedJob | list[AcceptedJob]]]

PICTURE_ACTIONS: Mapping[ButtonKind, Action] = MappingProxyType(
    {
        "zoomsome": "zoom",
        "zoomtwice": "zoom",
        "panleft": "pan",
        "panright": "pan",
        "panup": "pan",
        "pandown": "pan",
        "edit": "edit",
        "branch": "branch",
        "square": "zoom",
        "compare": "details",
    }
)
ZOOM_FACTORS: Mapping[str, float] = MappingProxyType({"zoomsome": 1.5, "zoomtwice": 2.0})
PAN_DIRECTIONS: Mapping[str, Literal["left", "right", "up", "down"]] = MappingProxyType(
    {"panleft": "left", "panright": "right", "panup": "up", "pandown": "down"}
)


MASK_HELP = "A picture of the same shape: white is redrawn, black stays"
MIN_STRENGTH = 0.05


async def run_picture_action(interaction: Interaction, button: Button, view: JobView) -> None:
    """Submit the job that the button means, or ask what else it needs. Raises `UserError`."""
    index = button.index or 0
    if button.kind == "branch":
        await branches.open_keyframe_menu(interaction, view, index)
    elif button.kind == "edit":
        await open_form(interaction, build_edit_form(view, index))
    elif button.kind == "compare":
        await send_comparison(interaction, view, index)
    else:
        await submit_once(
            interaction,
            button.custom_id,
            lambda member, destination, key: _submit(interaction, button, index, member, destination, key),
        )


async def _submit(
    interaction: Interaction, button: Button, index: int, member: Member, destination: Destination, key: str
) -> AcceptedJob:
    services = interaction.client.services
    if button.kind == "square":
        return await services.edits.zoom_to_square(button.job, index, member, destination, key=key)
    if factor := ZOOM_FACTORS.get(button.kind):
        return await services.edits.zoom(button.job, index, factor, member, destination, key=key)
    return await services.edits.pan(button.job, index, PAN_DIRECTIONS[button.kind], member, destination, key=key)


def build_edit_form(view: JobView, index: int) -> ui.Modal:
    """Return the form for one picture, filled in with its prompt."""
    modal = create_form(f"Edit picture {index + 1}", form_id("edit", view.id, index=index))
    modal.add_item(upload_field("mask", "Mask", MASK_HELP))
    modal.add_item(
        text_field(
            "prompt",
            "Prompt",
            "What to show there",
            value=prompt_without_flags(view),
            max_length=MAX_PROMPT,
            required=False,
        )
    )
    modal.add_item(
        text_field("strength", "Strength", "0.05 to 1; empty for 0.9", max_length=8, required=False, single_line=True)
    )
    return modal


async def submit_edit(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form."""
    masks = submission.files.get("mask", ())
    text = submission.fields.get("prompt", "")

    async def submit(member: Member, destination: Destination) -> Sequence[AcceptedJob]:
        strength = _parse_strength(submission.fields.get("strength", ""))
        if not masks:
            raise UserError("Which part? Add a mask, a picture whose white parts are redrawn.")
        accepted_job = await interaction.client.services.edits.edit(
            view.id,
            submission.index or 0,
            to_remote_file(masks[0]),
            member,
            destination,
            text=None if is_unchanged(text, view) else text,
            strength=strength,
            key=f"form:{interaction.id}",
        )
        return [accepted_job]

    await respond_with_jobs(interaction, submit)


def _parse_strength(text: str) -> float | None:
    """Return the strength; None if it is empty. Raises `UserError`."""
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = 0.0
    if not MIN_STRENGTH <= value <= 1:
        raise UserError(f"The strength is a number from {MIN_STRENGTH:g} to 1.")
    return value


NO_SOURCE = "This picture was made from no other."
# characters of a prompt in the message and in a picture's description
MAX_PROMPT_CHARS = 120
MAX_ALT_CHARS = 400


async def send_comparison(interaction: Interaction, view: JobView, index: int) -> None:
    """Show the two with their labels. Raises `UserError`, also if the source is gone or the member may not see it."""
    if view.parent_image is None:
        raise UserError(NO_SOURCE, 404)
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, (parent_id, parent_index) = interaction.client.services, view.parent_image
    parent = await services.job_views.load_view(parent_id)
    await require_permission(interaction, "details", parent)
    if has_same_noise(parent, view, index):
        parent_index = index
    payload = await services.gallery.render_comparison(
        [(parent_id, parent_index), (view.id, index)], [f"before: {parent_index + 1}", f"after: {index + 1}"]
    )
    names = [job_title(candidate.prompt) for candidate in (parent, view)]
    text = "Before: **{}**\nAfter: **{}**".format(*(escape_discord(name, MAX_PROMPT_CHARS) for name in names))
    description = "Left: {}. Right: {}".format(*(name[:MAX_ALT_CHARS] for name in names))
    file = discord.File(io.BytesIO(payload), f"darkroom-{view.id}-compared.png", description=description)
    await interaction.edit_original_response(content=text, attachments=[file], allowed_mentions=NO_MENTIONS)


def has_same_noise(parent: JobView, view: JobView, index: int) -> bool:
    """Return whether `view` is a remix whose picture has the noise of the same picture of `parent`."""
    if not (view.action == "remix" and isinstance(parent.task, Recipe) and isinstance(view.task, Recipe)):
        return False
    has_picture = any(picture.index == index for picture in parent.pictures)
    return has_picture and noise_seed(parent.task, index) == noise_seed(view.task, index)


async def submit_once(interaction: Interaction, custom_id: str, make: PressSubmitter) -> None:
    """Respond with the jobs that `make` submits to the job service. `custom_id`: the id of the pressed component."""
    keys = interaction.client.idempotency_keys
    user_id = str(interaction.user.id)
    accepted_jobs: list[AcceptedJob] = []
    key, is_first = keys.key_for(custom_id, user_id, str(interaction.id))

    async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
        result = await make(member, destination, key)
        accepted_jobs.extend(result if isinstance(result, list) else [result])
        return accepted_jobs

    try:
        await respond_with_jobs(interaction, submit, is_repeat=not is_first)
    finally:
        if not accepted_jobs:
            keys.forget(custom_id, user_id)
