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

from bot.chat.answer import member_of, sorry
from bot.chat.commands.imagine import typed
from bot.chat.permitted import permit, refusing
from bot.chat.quiet import QUIET
from bot.prompt.concepts import clean
from bot.prompt.flags import split
from bot.prompt.own import spelt
from bot.prompt.permutations import expand
from bot.prompt.shortening import kept, words_of
from bot.refused import Refused
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.desk.shortening import Weighed

log = logging.getLogger(__name__)

PROMPT, TOP, SHOWN = 700, 8, 100  # characters of a prompt; words that are named; characters of a version
BLOCK = re.compile(r"```\n(.+?)\n```", re.DOTALL)
HOW = """-# Measured with the text encoder: how far the prompt's embedding moves when a word is left out. No picture \
was made for this, and another model may weigh the words otherwise."""
GONE = "That message no longer shows its prompt. Please use /shorten again."


@app_commands.command(description="Which words of a prompt matter, and shorter versions to imagine")
@app_commands.describe(prompt="The prompt; its flags stay as they are")
async def shorten(interaction: discord.Interaction[DarkroomClient], prompt: Range[str, 1, PROMPT]) -> None:
    async with refusing(interaction):
        text = await _spelt(interaction, clean(prompt).replace("`", "'"))
        if len(text) > PROMPT:
            raise Refused(f"At most {PROMPT} characters can be measured, and these are {len(text)}.")
        if len(expand(text)) > 1:
            raise Refused("One prompt at a time: leave out the braces.")
        words_of(text)  # refuse before the response is deferred
        await interaction.response.defer(ephemeral=True, thinking=True)
        weighed = await interaction.client.desk.shortening.weigh(text)
        view = ui.View(timeout=None)
        for number, one in enumerate(weighed.shorter, 1):
            view.add_item(Shorter(number, one.version.kept))
        view.stop()  # its buttons are found by their ids, also after a restart
        await interaction.edit_original_response(content=told(text, weighed), view=view, allowed_mentions=QUIET)


async def _spelt(interaction: discord.Interaction[DarkroomClient], text: str) -> str:
    """Expand the member's flag aliases."""
    return spelt(text, await interaction.client.desk.options.meant(member_of(interaction).id, text))[0]


def told(text: str, weighed: Weighed) -> str:
    """Return the message: words by weight, versions, and the prompt itself, from which a press reads it."""
    order = sorted(range(len(weighed.words)), key=lambda at: -weighed.shares[at])
    heavy = " · ".join(f"**{quoted(weighed.words[at], 24)}** {weighed.shares[at]:.0%}" for at in order[:TOP])
    light = ", ".join(quoted(weighed.words[at], 24) for at in order[::-1][:5] if at not in order[:TOP])
    lines = [f"What matters most: {heavy}", *([f"What hardly matters: {light}"] if light else [])]
    lines += [
        f"`{number}.` {quoted(one.version.text, SHOWN)} · {max(0.0, one.alike):.0%} alike"
        for number, one in enumerate(weighed.shorter, 1)
    ]
    return "\n".join([*lines, HOW, f"```\n{text}\n```"])


class Shorter(ui.DynamicItem[ui.Button[Any]], template=r"shorten:(?P<number>[1-9]):(?P<kept>[0-9a-f]{1,32})"):
    """A button that imagines a shorter version: bit i of `kept` says whether word i stays."""

    def __init__(self, number: int, which: Sequence[int]) -> None:
        mask = sum(1 << at for at in which)
        super().__init__(ui.Button(label=f"Imagine {number}", custom_id=f"shorten:{number}:{mask:x}"))
        self.which = tuple(which)

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        mask = int(match["kept"], 16)
        return cls(int(match["number"]), [at for at in range(mask.bit_length()) if mask >> at & 1])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        try:
            async with refusing(interaction):
                await permit(interaction, "imagine")
                await typed(interaction, shortened(interaction.message, self.which))
        except Exception:
            log.exception("a shorter prompt could not be imagined")
            await sorry(interaction)


def shortened(message: discord.Message | None, which: Sequence[int]) -> str:
    """Return the version of the prompt in `message` that keeps these words, with its flags. Raises `Refused`."""
    blocks = BLOCK.findall(message.content if message else "")
    try:
        text = blocks[-1]
        flags = (f"--{given.name} {given.value}".rstrip() for given in split(text)[1])
        return " ".join((kept(words_of(text), which).text, *flags))
    except IndexError as error:
        raise Refused(GONE, 404) from error
