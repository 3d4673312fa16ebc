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

from bot.chat.answer import member_of, sorry
from bot.chat.brought import remote
from bot.chat.commands import offered
from bot.chat.commands.imagine import typed
from bot.chat.permitted import permit, refusing
from bot.chat.quiet import QUIET
from bot.refused import Refused
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.desk.describing import Described

log = logging.getLogger(__name__)

LINE = re.compile(r"^`([1-4])\.` (.+) · [0-9]+ % less error", re.MULTILINE)
GONE = "That message no longer shows its prompts. Please use /describe again."


@app_commands.command(description="Suggest prompts for a picture, each to imagine")
@app_commands.describe(image="The picture", model="Which model scores the words")
async def describe(
    interaction: discord.Interaction[DarkroomClient], image: discord.Attachment, model: str | None = None
) -> None:
    async with refusing(interaction):
        await interaction.response.defer(ephemeral=True, thinking=True)
        desk, member = interaction.client.desk, member_of(interaction)
        described = await desk.describing.describe(remote(image), member, model)
        view = ui.View(timeout=None)
        for number in range(1, 1 + len(described.words)):
            view.add_item(Imagined(number))
        view.stop()  # its buttons are found by their ids, also after a restart
        await interaction.edit_original_response(content=told(described, model), view=view, allowed_mentions=QUIET)


@describe.autocomplete("model")
async def models(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    """Suggest the models that workers have in memory or on disk."""
    return offered.models(interaction.client.studio.models(), typed)


def told(described: Described, model: str | None = None) -> str:
    """Return the message: the prompts, the best first, from which a press reads them, and the notes.

    `model`: the model that was named; the prompts name it, too, so that it makes the pictures.
    """
    flag = f" --model {described.model}" if model else ""
    lines = [
        f"`{number}.` {one.prompt}{flag} · {100 * one.gain:.0f} % less error than without words"
        for number, one in enumerate(described.words, 1)
    ]
    return "\n".join([*lines, *described.notes, f"-# {quoted(described.sentence, 400)}"])


class Imagined(ui.DynamicItem[ui.Button[Any]], template=r"describe:(?P<number>[1-4])"):
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
        try:
            async with refusing(interaction):
                await permit(interaction, "imagine")
                await typed(interaction, prompt(interaction.message, self.number))
        except Exception:
            log.exception("a suggested prompt could not be imagined")
            await sorry(interaction)


def prompt(message: discord.Message | None, number: int) -> str:
    """Return the prompt with this number in `message`. Raises `Refused`."""
    found = {int(line): text for line, text in LINE.findall(message.content if message else "")}
    try:
        return found[number]
    except KeyError as error:
        raise Refused(GONE, 404) from error
