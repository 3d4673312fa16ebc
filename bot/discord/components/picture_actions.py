"""Presses on pictures: upscale, vary, another seed or prompt, zoom, pan, edit, make square, compare.

The caller has checked the permission. Knows the job service; knows nothing of which buttons a card shows.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import discord

from bot.discord.cards.job_cards import job_title
from bot.discord.components.forms import (
    FormSubmission,
    create_form,
    form_id,
    is_unchanged,
    open_form,
    prompt_field,
    prompt_without_flags,
    short_field,
    upload_field,
)
from bot.discord.responses import NO_MENTIONS, member_of, require_permission, respond_with_jobs, to_remote_file
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.jobs.variations import VARIATION_STRENGTHS
from engine.contract import Recipe, noise_seed, recipe_at_end

if TYPE_CHECKING:
    from discord import ui

    from bot.discord.cards.button_layout import Button
    from bot.discord.client import Interaction
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member
    from bot.jobs.preferences import Preference

    PressSubmitter = Callable[[Member, Destination, str], Awaitable[AcceptedJob | list[AcceptedJob]]]

ZOOM_FACTORS: Mapping[str, float] = MappingProxyType({"zoomsome": 1.5, "zoomtwice": 2.0})
PAN_DIRECTIONS: Mapping[str, Literal["left", "right", "up", "down"]] = MappingProxyType(
    {"panleft": "left", "panright": "right", "panup": "up", "pandown": "down"}
)
MASK_HELP = "A picture of the same shape: white is redrawn, black stays"
MIN_STRENGTH = 0.05
NO_SOURCE = "This picture was made from no other."
# characters of a prompt in the message and in a picture's description
MAX_PROMPT_CHARS = 120
MAX_ALT_CHARS = 400
NoiseMode = Literal["same", "subtle", "strong", "roll"]

# The noise of a remix: the same noise, noise at some distance from one picture's, or new noise.
NOISE_DISTANCES: Mapping[str, float | None] = MappingProxyType({"same": None, **VARIATION_STRENGTHS, "roll": 1.0})
FORM_TITLES: Mapping[NoiseMode, str] = MappingProxyType(
    {"same": "Remix", "subtle": "Vary subtly", "strong": "Vary strongly", "roll": "Roll again"}
)


async def submit_reshaped(interaction: Interaction, button: Button, view: JobView) -> None:
    """Submit the picture zoomed out, panned or made square."""
    edits = interaction.client.services.edits
    index = button.index or 0

    async def submit(member: Member, destination: Destination, key: str) -> AcceptedJob:
        if button.kind == "square":
            return await edits.zoom_to_square(button.job, index, member, destination, key=key)
        if factor := ZOOM_FACTORS.get(button.kind):
            return await edits.zoom(button.job, index, factor, member, destination, key=key)
        return await edits.pan(button.job, index, PAN_DIRECTIONS[button.kind], member, destination, key=key)

    await submit_once(interaction, button.custom_id, submit)


async def open_edit_form(interaction: Interaction, button: Button, view: JobView) -> None:
    """Ask for a mask and a prompt."""
    await open_form(interaction, build_edit_form(view, button.index or 0))


def build_edit_form(view: JobView, index: int) -> ui.Modal:
    """Return the form for one picture, filled in with its prompt."""
    return create_form(
        f"Edit picture {index + 1}",
        form_id("edit", view.id, index=index),
        upload_field("mask", "Mask", MASK_HELP),
        prompt_field("prompt", "Prompt", "What to show there", prompt_without_flags(view), required=False),
        short_field("strength", "Strength", "0.05 to 1; empty for 0.9", 8),
    )


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


async def send_comparison(interaction: Interaction, button: Button, view: JobView) -> None:
    """Show a picture beside its source, to the presser. Raises `UserError`, also if they may not see the source."""
    index = button.index or 0
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
    """Respond with the jobs that `make` submits. A double click on the component `custom_id` makes one job."""
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


async def run_variation(interaction: Interaction, button: Button, view: JobView) -> None:
    """Submit the button's job, or open the prompt form if the button or the member's preference says so."""
    variations = interaction.client.services.variations
    preference = await interaction.client.services.preferences.load_preference(member_of(interaction).id)
    noise_mode = _noise_mode(button, preference)
    if button.kind == "remix" or (preference.remix and noise_mode is not None):
        await open_form(interaction, build_remix_form(view, noise_mode or "same", button.index))
        return

    async def submit(member: Member, destination: Destination, key: str) -> AcceptedJob:
        if noise_mode == "roll" or button.index is None:
            return await variations.reroll(button.job, member, destination, key=key)
        if noise_mode is None:
            return await variations.upscale(button.job, button.index, member, destination, key=key)
        strength = VARIATION_STRENGTHS["strong" if noise_mode == "strong" else "subtle"]
        return await variations.vary(button.job, button.index, member, destination, key=key, strength=strength)

    await submit_once(interaction, button.custom_id, submit)


async def submit_remix(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form."""
    if submission.mode not in NOISE_DISTANCES:
        raise UserError("This form is of another version of the bot. Please press the button once more.")
    prompt = submission.fields.get("prompt", "")
    negative = submission.fields.get("negative", "")
    key = f"form:{interaction.id}"
    distance = NOISE_DISTANCES[submission.mode]

    async def submit(member: Member, destination: Destination) -> Sequence[AcceptedJob]:
        return await interaction.client.services.variations.remix(
            view.id, submission.index, prompt, member, destination, key=key, strength=distance, negative=negative
        )

    await respond_with_jobs(interaction, submit)


def _noise_mode(button: Button, preference: Preference) -> NoiseMode | None:
    """Return how far the noise is from the parent's; None for an upscale."""
    if button.kind == "up":
        return None
    if button.kind == "reroll":
        return "roll"
    if button.kind == "remix" and button.index is None:
        return "same"
    return button.kind if button.kind in ("subtle", "strong") else preference.variation


def build_remix_form(view: JobView, noise_mode: NoiseMode, index: int | None) -> ui.Modal:
    """Return the form, filled in with the prompt; typed flags are in the recipe already."""
    negative = recipe_at_end(view.task).negative if isinstance(view.task, Recipe) else ""
    suffix = "" if index is None or noise_mode in ("same", "roll") else f" picture {index + 1}"
    return create_form(
        f"{FORM_TITLES[noise_mode]}{suffix}",
        form_id("remix", view.id, noise_mode, index),
        prompt_field("prompt", "Prompt", "Flags like --steps 40 work here too", prompt_without_flags(view)),
        prompt_field("negative", "Steer away from", "Empty for nothing", negative, required=False),
    )
