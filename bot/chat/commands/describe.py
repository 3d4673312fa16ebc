"""`/describe`: words that fit a picture, of those that a model knows, each to be imagined.

Stateless: the prompts stand in the message, and a button says which of them it is.
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
GONE = "That message does not show its prompts any more. Please ask once more."


@app_commands.command(description="Words that fit a picture, of those that a model knows, to imagine")
@app_commands.describe(image="The picture", model="Which model is asked")
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
    """What the workers have in memory, or on their disks."""
    return offered.models(interaction.client.studio.models(), typed)


def told(described: Described, model: str | None = None) -> str:
    """The prompts, the best first, from which a press reads them; and what they are. `model`: the one that was named,
    which shall draw them, too.
    """
    flag = f" --model {described.model}" if model else ""
    lines = [
        f"`{number}.` {one.prompt}{flag} · {100 * one.gain:.0f} % less error than without words"
        for number, one in enumerate(described.words, 1)
    ]
    return "\n".join([*lines, *described.notes, f"-# {quoted(described.sentence, 400)}"])


class Imagined(ui.DynamicItem[ui.Button[Any]], template=r"describe:(?P<number>[1-4])"):
    """One of the prompts, to be imagined."""

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
            log.exception("a description could not be imagined")
            await sorry(interaction)


def prompt(message: discord.Message | None, number: int) -> str:
    """The prompt of this number in `message`. Raises `Refused`."""
    found = {int(line): text for line, text in LINE.findall(message.content if message else "")}
    try:
        return found[number]
    except KeyError as error:
        raise Refused(GONE, 404) from error
