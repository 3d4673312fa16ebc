"""`/prefer`: a member's preferences, shown and set. They hold in every server.

`suffix`, `remix`, `auto_dm` and `option` have Midjourney's names; `set` changes every preference but the aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Choice, Range

from bot.chat.answer import member_of, say
from bot.chat.permitted import refusing
from bot.desk.preferences import NAMES, SUFFIX, WORDS, Preference
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "ping": "a new message tells you when a long job ends",
        "direct": "each finished picture also as a direct message",
        "remix": "V and 🔄 ask for another prompt first",
        "speed": "fast, or relaxed: later, but outside your limit",
        "results": "public in the channel, or private to you",
        "variation": "how far V1–V4 differ from their picture",
        "suffix": "is added to every prompt that you type",
    }
)
NAMED = [Choice(name=f"{name}: {ABOUT[name]}", value=name) for name in NAMES]


prefer = app_commands.Group(name="prefer", description="Your preferences: pings, speed, a suffix, flag aliases, …")


@prefer.command(description="All your preferences")
async def show(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with refusing(interaction):
        chosen = await interaction.client.desk.preferences.of(member_of(interaction).id)
        await say(interaction, everything(chosen, interaction.client.tree.mention))


@prefer.command(name="set", description="Change one: pings, direct messages, speed, private results, a suffix, …")
@app_commands.describe(name="Which one", value="What it should be; without it, its default")
@app_commands.choices(name=NAMED)
async def set_(
    interaction: discord.Interaction[DarkroomClient], name: str, value: Range[str, 1, SUFFIX] | None = None
) -> None:
    await _set(interaction, name, value or "")


@prefer.command(description="Words and flags that are added to every prompt of yours; without any, none are")
@app_commands.describe(value="What is added, like soft light --ar 3:2")
async def suffix(interaction: discord.Interaction[DarkroomClient], value: Range[str, 1, SUFFIX] | None = None) -> None:
    await _set(interaction, "suffix", value or "")


@prefer.command(description="Whether V and 🔄 ask for another prompt first: switches it on, or off again")
async def remix(interaction: discord.Interaction[DarkroomClient]) -> None:
    await _switch(interaction, "remix")


@prefer.command(description="Whether finished pictures also come as direct messages: switches it on, or off again")
async def auto_dm(interaction: discord.Interaction[DarkroomClient]) -> None:
    await _switch(interaction, "direct")


async def _set(interaction: discord.Interaction[DarkroomClient], name: str, value: str) -> None:
    async with refusing(interaction):
        chosen = await interaction.client.desk.preferences.prefer(member_of(interaction).id, name, value)
        await say(interaction, f"From now on: {line(name, chosen)}")


async def _switch(interaction: discord.Interaction[DarkroomClient], name: str) -> None:
    preferences = interaction.client.desk.preferences
    async with refusing(interaction):
        on = bool(getattr(await preferences.of(member_of(interaction).id), name))
        await _set(interaction, name, "off" if on else "on")


@set_.autocomplete("value")
async def values(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    """Suggest values of the chosen preference."""
    name = str(getattr(interaction.namespace, "name", None) or "")
    if name == "suffix" or name not in NAMES:
        now = (await interaction.client.desk.preferences.of(member_of(interaction).id)).suffix
        return [Choice(name=now[:100], value=now[:100])] if name == "suffix" and now and not typed else []
    return [Choice(name=word, value=word) for word in WORDS.get(name, ("on", "off")) if typed.casefold() in word]


def everything(chosen: Preference, mention: Callable[[str], str]) -> str:
    """Return all preferences, one a line, and how to change one: `mention` names a command."""
    how = f"""-# {mention("prefer set")} with a name and a value changes one; without a value it is back to its \
default. {mention("prefer option list")} has your flag aliases."""
    return "\n".join(["**Your preferences**", *(line(name, chosen) for name in NAMES), how])


def line(name: str, chosen: Preference) -> str:
    """Return one preference as a member reads it."""
    value = getattr(chosen, name)
    said = {True: "on", False: "off", "": "none"}.get(value) or quoted(str(value), 400)
    return f"`{name}` **{said}** · {ABOUT[name]}"
