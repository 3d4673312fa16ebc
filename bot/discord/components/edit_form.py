"""The inpainting form of a picture: a mask, a prompt and a strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.discord.attachments import to_remote_file
from bot.discord.components.forms import (
    MAX_PROMPT,
    FormSubmission,
    create_form,
    form_id,
    is_unchanged,
    prompt_without_flags,
    text_field,
    upload_field,
)
from bot.discord.responses import respond_with_jobs
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import discord
    from discord import ui

    from bot.discord.client import DarkroomClient
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member

MASK_HELP = "A picture of the same shape: white is redrawn, black stays"
MIN_STRENGTH = 0.05


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


async def submit_edit(
    interaction: discord.Interaction[DarkroomClient], submission: FormSubmission, view: JobView
) -> None:
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
