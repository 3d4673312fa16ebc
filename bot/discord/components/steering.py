"""What one can do with a developing picture: keep some of its images, say more, or begin it again as it is now.

Stateless: ids hold the job, so presses and forms work after a restart. The caller has checked the permission of the
press; a later choice checks it again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.discord.components.forms import (
    FormSubmission,
    choice_field,
    create_form,
    form_id,
    open_form,
    prompt_field,
    short_field,
)
from bot.discord.components.picture_actions import submit_once
from bot.discord.responses import NO_MENTIONS, member_of, report_errors, require_permission, send_ephemeral
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.domain.steering import AmendmentView, SteeringRequest
from bot.domain.texts import escape_discord, shorten
from bot.prompt.concepts import MAX_WEIGHT
from engine.contract import Recipe, list_final_images, recipe_at_end

if TYPE_CHECKING:
    from bot.discord.cards.button_layout import Button
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView

log = logging.getLogger(__name__)

ENDED = "This picture develops no longer."
ONE_IMAGE = "Only one image is left, so it is kept anyway."
KEEP_QUESTION = "Which images shall go on? The others end here, and no pictures are made of them."
NOTHING_SAID = "Nothing to change: say something, or choose less or more guidance."
WEIGHT_RANGE = f"“{{}}” is no weight: it takes a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, such as 0.5."
SOON = "It holds from one of the next steps on; the picture's message says from which."
_WEIGHT = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{0,6})?|\.\d{1,6})")
MIN_GUIDANCE = 1.0
MAX_GUIDANCE = 30.0
GUIDANCE_CHOICES = (("same", "as it is"), ("less", "less: freer"), ("more", "more: closer to the words"))
GUIDANCE_FACTORS: Mapping[str, float] = MappingProxyType({"less": 2 / 3, "more": 3 / 2})


def _developing_recipe(view: JobView) -> Recipe:
    """Return the recipe of a job that runs. Raises `UserError` for any other."""
    if is_end(view.state) or not isinstance(view.task, Recipe):
        raise UserError(ENDED)
    return view.task


async def open_keep_menu(interaction: Interaction, view: JobView) -> None:
    """Ask which images shall stay. Raises `UserError` if only one is left."""
    images = list_final_images(_developing_recipe(view))
    if len(images) < 2:
        raise UserError(ONE_IMAGE)
    menu = ui.View(timeout=None)
    menu.add_item(KeepSelect(view.id, images))
    menu.stop()  # found by its id, also after a restart
    await interaction.response.send_message(KEEP_QUESTION, view=menu, ephemeral=True, allowed_mentions=NO_MENTIONS)


class KeepSelect(ui.DynamicItem[ui.Select[Any]], template=r"stay:(?P<job>[0-9A-HJKMNP-TV-Z]{26})"):
    """The developing images of a job; those chosen stay."""

    def __init__(self, job: str, images: Sequence[int] = ()) -> None:
        options = [discord.SelectOption(label=f"Image {image + 1}", value=str(image)) for image in images]
        select = ui.Select[Any](
            placeholder="Keep", options=options, custom_id=f"stay:{job}", max_values=max(1, len(images) - 1)
        )
        super().__init__(select)
        self.job = job

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(match["job"])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "job %s: keeping some of its images failed", self.job):
            values = [str(value) for value in (interaction.data or {}).get("values") or ()]
            if not values or not all(re.fullmatch("[0-3]", value) for value in values):
                raise UserError("These are no images. Please press Keep… once more.")
            services = interaction.client.services
            await require_permission(interaction, "steer", await services.job_views.load_view(self.job))
            request = SteeringRequest(keep=tuple(sorted(map(int, values))))
            answer = await services.steering.amend(self.job, request, member_of(interaction), f"keep:{interaction.id}")
            text = _confirm(answer.amendments)
            await interaction.response.edit_message(content=text, view=None, allowed_mentions=NO_MENTIONS)


async def open_say_form(interaction: Interaction, view: JobView) -> None:
    """Ask what shall change. Raises `UserError` if the job does not run."""
    _developing_recipe(view)
    await open_form(interaction, build_say_form(view.id))


def build_say_form(job: str) -> ui.Modal:
    """Return the form: words, their weight, and less or more guidance."""
    weight_help = "With one, the words are a part of their own; -1 steers away from them"
    return create_form(
        "Say more",
        form_id("say", job),
        prompt_field("words", "Words", "From now on the picture follows them too", required=False),
        short_field("weight", "Weight", weight_help, 8),
        choice_field("guidance", "Guidance", GUIDANCE_CHOICES),
    )


async def submit_words(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form. Raises `UserError`."""
    request = read_say_form(submission, _developing_recipe(view))
    member = member_of(interaction)
    answer = await interaction.client.services.steering.amend(view.id, request, member, f"form:{interaction.id}")
    await send_ephemeral(interaction, _confirm(answer.amendments))


def read_say_form(submission: FormSubmission, recipe: Recipe) -> SteeringRequest:
    """Return what the form asks for of a job that is now so amended. Raises `UserError`."""
    words = submission.fields.get("words", "").strip()
    factor = GUIDANCE_FACTORS.get(submission.choices.get("guidance", ""))
    if not words and factor is None:
        raise UserError(NOTHING_SAID)
    guidance = None
    if factor is not None:
        guidance = round(min(MAX_GUIDANCE, max(MIN_GUIDANCE, recipe_at_end(recipe).guidance * factor)), 2)
    weight = _parse_weight(submission.fields.get("weight", "")) if words else None
    return SteeringRequest(say=words, say_weight=weight, guidance=guidance)


def _parse_weight(text: str) -> float | None:
    text = text.strip().replace(",", ".").replace("−", "-")
    if not text:
        return None
    if not _WEIGHT.fullmatch(text) or abs(float(text)) > MAX_WEIGHT:
        raise UserError(WEIGHT_RANGE.format(shorten(text, 20)))
    return float(text)


async def submit_again(interaction: Interaction, button: Button, view: JobView) -> None:
    """Begin a second job with all that has been said so far: it is the same until now, and goes its own way from here.

    Raises `UserError` if the job does not run.
    """
    _developing_recipe(view)
    variations = interaction.client.services.variations
    await submit_once(
        interaction,
        button.custom_id,
        lambda member, destination, key: variations.reproduce(view.id, member, destination, key=key),
    )


def _confirm(amendments: Sequence[AmendmentView]) -> str:
    """Return the answer to the member who said it."""
    lines = [f"💬 {escape_discord(amendment.text, 300)}" for amendment in amendments]
    return "\n".join([*lines, SOON])
