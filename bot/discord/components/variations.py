"""Presses that make a new job from a job: U, V, another seed, and a prompt form for any of them.

A double click makes one job: both presses use the same key. The caller has checked the permission.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from bot.discord.components.forms import (
    MAX_PROMPT,
    FormSubmission,
    create_form,
    form_id,
    open_form,
    prompt_without_flags,
    text_field,
)
from bot.discord.components.picture_actions import submit_once
from bot.discord.responses import member_of, respond_with_jobs
from bot.domain.errors import UserError
from bot.jobs.variations import VARIATION_STRENGTHS
from engine.contract import Recipe, recipe_at_end

if TYPE_CHECKING:
    from discord import ui

    from bot.discord.cards.button_layout import Button
    from bot.discord.client import Interaction
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member
    from bot.jobs.preferences import Preference
    from bot.jobs.variations import VariationService

NoiseMode = Literal["same", "subtle", "strong", "roll"]

# The noise of a remix: the same noise, noise at some distance from one picture's, or new noise.
NOISE_DISTANCES: Mapping[str, float | None] = MappingProxyType({"same": None, **VARIATION_STRENGTHS, "roll": 1.0})
FORM_TITLES: Mapping[NoiseMode, str] = MappingProxyType(
    {"same": "Remix", "subtle": "Vary subtly", "strong": "Vary strongly", "roll": "Roll again"}
)


async def run_variation(interaction: Interaction, button: Button, view: JobView) -> None:
    """Submit the button's job, or open the prompt form if the button or the member's preference says so."""
    preference = await interaction.client.services.preferences.load_preference(member_of(interaction).id)
    noise_mode = _noise_mode(button, preference)
    if button.kind == "remix" or (preference.remix and noise_mode is not None):
        await open_form(interaction, build_remix_form(view, noise_mode or "same", button.index))
    else:
        await _submit_once(interaction, button, noise_mode)


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
    modal = create_form(f"{FORM_TITLES[noise_mode]}{suffix}", form_id("remix", view.id, noise_mode, index))
    modal.add_item(
        text_field(
            "prompt",
            "Prompt",
            "Flags like --steps 40 work here too",
            value=prompt_without_flags(view),
            max_length=MAX_PROMPT,
        )
    )
    modal.add_item(
        text_field(
            "negative", "Steer away from", "Empty for nothing", value=negative, max_length=MAX_PROMPT, required=False
        )
    )
    return modal


async def _submit_once(interaction: Interaction, button: Button, noise_mode: NoiseMode | None) -> None:
    async def make(member: Member, destination: Destination, key: str) -> AcceptedJob:
        return await _submit_variation(
            interaction.client.services.variations, button, noise_mode, member, destination, key
        )

    await submit_once(interaction, button.custom_id, make)


async def _submit_variation(
    variations: VariationService,
    button: Button,
    noise_mode: NoiseMode | None,
    member: Member,
    destination: Destination,
    key: str,
) -> AcceptedJob:
    if noise_mode == "roll" or button.index is None:
        return await variations.reroll(button.job, member, destination, key=key)
    if noise_mode is None:
        return await variations.upscale(button.job, button.index, member, destination, key=key)
    strength = VARIATION_STRENGTHS["strong" if noise_mode == "strong" else "subtle"]
    return await variations.vary(button.job, button.index, member, destination, key=key, strength=strength)
