"""`/shorten`: which words of a prompt matter, and shorter versions of it to imagine.

Stateless: the message holds the prompt, and a button's id the words that its version keeps.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import app_commands, ui
from discord.app_commands import Range

from bot.discord.commands.imagine import submit_prompt
from bot.discord.declarations import declare
from bot.discord.responses import NO_MENTIONS, member_of, reply_on_error, report_errors, require_permission
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.features.shorten.rules import build_short_prompt, split_words
from bot.features.shorten.service import PromptShortener
from bot.prompt.concepts import clean_prompt
from bot.prompt.flag_aliases import expand_flag_aliases
from bot.prompt.flags import split_flags
from bot.prompt.permutations import expand_braces

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.features.shorten.service import PromptWeights

log = logging.getLogger(__name__)

MAX_PROMPT = 700  # characters
TOP_WORDS = 8  # words that are named
MAX_VERSION_CHARS = 100  # characters of a version
CODE_BLOCK = re.compile(r"```\n(.+?)\n```", re.DOTALL)
METHOD_NOTE = """-# Measured with the text encoder: how far the prompt's embedding moves when a word is left out. No \
picture was made for this, and another model may weigh the words otherwise."""
PROMPT_GONE = "That message no longer shows its prompt. Please use /shorten again."


@app_commands.command(
    description="Which words of a prompt matter, and shorter versions to imagine",
    extras=declare("prompt", help="which words matter"),
)
@app_commands.describe(prompt="The prompt; its flags stay as they are")
async def shorten(interaction: discord.Interaction[DarkroomClient], prompt: Range[str, 1, MAX_PROMPT]) -> None:
    async with reply_on_error(interaction):
        text = await _expand_aliases(interaction, clean_prompt(prompt).replace("`", "'"))
        if len(text) > MAX_PROMPT:
            raise UserError(f"At most {MAX_PROMPT} characters can be measured, and these are {len(text)}.")
        if len(expand_braces(text)) > 1:
            raise UserError("One prompt at a time: leave out the braces.")
        split_words(text)  # refuse before the response is deferred
        await interaction.response.defer(ephemeral=True, thinking=True)
        analysis = await interaction.client.services.get(PromptShortener).weigh_prompt(text)
        view = ui.View(timeout=None)
        for number, shorter in enumerate(analysis.shorter_prompts, 1):
            view.add_item(ShortenButton(number, shorter.version.word_indices))
        view.stop()  # its buttons are found by their ids, also after a restart
        await interaction.edit_original_response(
            content=render_analysis(text, analysis), view=view, allowed_mentions=NO_MENTIONS
        )


async def _expand_aliases(interaction: discord.Interaction[DarkroomClient], text: str) -> str:
    """Expand the member's flag aliases."""
    return expand_flag_aliases(
        text, await interaction.client.services.preferences.load_flag_aliases(member_of(interaction).id, text)
    )[0]


def render_analysis(text: str, analysis: PromptWeights) -> str:
    """Return the message: words by weight, versions, and the prompt itself. A press reads the prompt from it."""
    order = sorted(range(len(analysis.words)), key=lambda index: -analysis.shares[index])
    top_words = " · ".join(
        f"**{escape_discord(analysis.words[index], 24)}** {analysis.shares[index]:.0%}" for index in order[:TOP_WORDS]
    )
    weak_words = ", ".join(
        escape_discord(analysis.words[index], 24) for index in order[::-1][:5] if index not in order[:TOP_WORDS]
    )
    lines = [f"What matters most: {top_words}", *([f"What hardly matters: {weak_words}"] if weak_words else [])]
    lines += [
        f"`{number}.` {escape_discord(shorter.version.text, MAX_VERSION_CHARS)} · {max(0.0, shorter.similarity):.0%} "
        "alike"
        for number, shorter in enumerate(analysis.shorter_prompts, 1)
    ]
    return "\n".join([*lines, METHOD_NOTE, f"```\n{text}\n```"])


class ShortenButton(ui.DynamicItem[ui.Button[Any]], template=r"shorten:(?P<number>[1-9]):(?P<kept>[0-9a-f]{1,32})"):
    """A button that imagines a shorter version: bit i of `kept` in its id says whether word i stays."""

    def __init__(self, number: int, word_indices: Sequence[int]) -> None:
        bitmask = sum(1 << index for index in word_indices)
        super().__init__(ui.Button(label=f"Imagine {number}", custom_id=f"shorten:{number}:{bitmask:x}"))
        self.word_indices = tuple(word_indices)

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        bitmask = int(match["kept"], 16)
        return cls(int(match["number"]), [index for index in range(bitmask.bit_length()) if bitmask >> index & 1])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "a shorter prompt could not be imagined"):
            await require_permission(interaction, "imagine")
            await submit_prompt(interaction, build_version(interaction.message, self.word_indices))


def build_version(message: discord.Message | None, word_indices: Sequence[int]) -> str:
    """Return the version of the prompt in `message` that keeps these words, with its flags. Raises `UserError`."""
    blocks = CODE_BLOCK.findall(message.content if message else "")
    try:
        text = blocks[-1]
        flags = (f"--{flag.name} {flag.value}".rstrip() for flag in split_flags(text)[1])
        return " ".join((build_short_prompt(split_words(text), word_indices).text, *flags))
    except IndexError as error:
        raise UserError(PROMPT_GONE, 404) from error
