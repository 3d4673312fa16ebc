"""`/describe`: suggests prompts for an image, each with a button that imagines it.

Stateless: the message holds the prompts, and a button's id says which one.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import app_commands, ui
from discord.app_commands import Choice

from bot.discord.commands.imagine import model_choices, submit_prompt
from bot.discord.declarations import declare
from bot.discord.responses import (
    NO_MENTIONS,
    member_of,
    reply_on_error,
    report_errors,
    require_permission,
    to_remote_file,
)
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.features.describe.service import ImageToPrompt

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.features.describe.service import PromptSuggestions

log = logging.getLogger(__name__)

PROMPT_LINE = re.compile(r"^`([1-4])\.` (.+) · [0-9]+ % less error", re.MULTILINE)
PROMPTS_GONE = "That message no longer shows its prompts. Please use /describe again."


@app_commands.command(
    description="Suggest prompts for a picture, each to imagine",
    extras=declare("describe", help="prompts for a picture"),
)
@app_commands.describe(image="The picture", model="Which model scores the words")
async def describe(
    interaction: discord.Interaction[DarkroomClient], image: discord.Attachment, model: str | None = None
) -> None:
    async with reply_on_error(interaction):
        await interaction.response.defer(ephemeral=True, thinking=True)
        services = interaction.client.services
        member = member_of(interaction)
        suggestions = await services.get(ImageToPrompt).suggest_prompts(to_remote_file(image), member, model)
        view = ui.View(timeout=None)
        for number in range(1, 1 + len(suggestions.prompts)):
            view.add_item(ImagineButton(number))
        view.stop()  # its buttons are found by their ids, also after a restart
        await interaction.edit_original_response(
            content=render_suggestions(suggestions, model), view=view, allowed_mentions=NO_MENTIONS
        )


@describe.autocomplete("model")
async def suggest_models(interaction: discord.Interaction[DarkroomClient], current: str) -> list[Choice[str]]:
    """Suggest the models that workers have in memory or on disk."""
    return model_choices(interaction.client.services.catalog.list_profiles(), current)


def render_suggestions(suggestions: PromptSuggestions, model: str | None = None) -> str:
    """Return the message: the prompts, the best first, and the notes. A press reads the prompts from it.

    `model`: the model that the member named; the prompts name it too, so that it makes the pictures.
    """
    flag = f" --model {suggestions.model}" if model else ""
    lines = [
        f"`{number}.` {scored.prompt}{flag} · {100 * scored.error_reduction:.0f} % less error than without words"
        for number, scored in enumerate(suggestions.prompts, 1)
    ]
    return "\n".join([*lines, *suggestions.notes, f"-# {escape_discord(suggestions.sentence, 400)}"])


class ImagineButton(ui.DynamicItem[ui.Button[Any]], template=r"describe:(?P<number>[1-4])"):
    """A button that imagines one of the prompts."""

    def __init__(self, number: int) -> None:
        super().__init__(ui.Button(label=f"Imagine {number}", custom_id=f"describe:{number}"))
        self.number = number

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(int(match["number"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "a suggested prompt could not be imagined"):
            await require_permission(interaction, "imagine")
            await submit_prompt(interaction, find_prompt(interaction.message, self.number))


def find_prompt(message: discord.Message | None, number: int) -> str:
    """Return the prompt with this number in `message`. Raises `UserError`."""
    prompts = {int(line): text for line, text in PROMPT_LINE.findall(message.content if message else "")}
    try:
        return prompts[number]
    except KeyError as error:
        raise UserError(PROMPTS_GONE, 404) from error
