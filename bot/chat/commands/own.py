"""`/prefer option`: flag aliases. `--mine` in a member's prompt then stands for the text that they set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Choice, Range

from bot.chat.answer import member_of, say
from bot.chat.commands.prefer import prefer
from bot.chat.permitted import refusing
from bot.chat.which import CHOICE, OFFERED
from bot.desk.options import MOST
from bot.prompt.own import LONGEST
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

SHOWN, ROOM, AROUND = 200, 1700, 50  # characters of a value, of all lines in one message, and of a line without value
NONE = "You have no flag alias yet. {} makes one: `--mine` then stands for the text that you set."

option = app_commands.Group(
    name="option", description="Flag aliases, which stand for what you often type", parent=prefer
)


@option.command(name="set", description="Set what a flag alias stands for; without a value it is deleted")
@app_commands.describe(name="Its name: mine is typed as --mine", value="Words and flags, like soft light --ar 3:2")
async def set_(
    interaction: discord.Interaction[DarkroomClient],
    name: Range[str, 1, 40],
    value: Range[str, 1, LONGEST] | None = None,
) -> None:
    async with refusing(interaction):
        options, me = interaction.client.desk.options, member_of(interaction).id
        if value is None:
            await say(interaction, f"`--{await options.drop(me, name)}` is deleted.")
            return
        kept = await options.put(me, name, value)
        await say(interaction, f"From now on: {line(kept, (await options.of(me)).get(kept, value))}")


@option.command(name="list", description="Your flag aliases, and what they stand for")
async def list_(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with refusing(interaction):
        mine = await interaction.client.desk.options.of(member_of(interaction).id)
        await say(interaction, everything(mine, interaction.client.tree.mention("prefer option set")))


@set_.autocomplete("name")
async def names(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    """Suggest the aliases that exist, with what they stand for."""
    mine = await interaction.client.desk.options.of(member_of(interaction).id)
    found = {name: value for name, value in mine.items() if typed.strip().lower().removeprefix("--") in name}
    return [Choice(name=f"{name}: {value}"[:CHOICE], value=name) for name, value in found.items()][:OFFERED]


def everything(mine: Mapping[str, str], command: str) -> str:
    """Return all aliases of a member, one a line, and how to change them; `command` is the command that does."""
    if not mine:
        return NONE.format(command)
    each = min(SHOWN, ROOM // len(mine) - AROUND)
    lines = (line(name, value, each) for name, value in mine.items())
    how = f"-# {command} makes one, of at most {MOST}; without a value it deletes one."
    return "\n".join(["**Your flag aliases**", *lines, how])


def line(name: str, value: str, most: int = SHOWN) -> str:
    """Return one alias as a member reads it, with at most `most` characters of what it stands for."""
    return f"`--{name}` stands for **{quoted(value, most)}**"
