"""`/prefer`: a member's own choices, shown and set. They hold in every server, for this member alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Choice, Range

from bot.chat.answer import member_of, say
from bot.chat.permitted import refusing
from bot.desk.preferences import NAMES, SUFFIX, WORDS, Preference
from bot.refused import Refused
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "ping": "a new message tells you when a long job ends",
        "direct": "each finished picture also as a direct message",
        "remix": "V and 🔄 ask for other words first",
        "speed": "fast, or relaxed: later, but outside your limit",
        "results": "public in the channel, or private to you",
        "variation": "how far V1–V4 go from their picture",
        "suffix": "is added to every prompt that you type",
    }
)
NAMED = [Choice(name=f"{name}: {ABOUT[name]}", value=name) for name in NAMES]


@app_commands.command(description="What you prefer: pings, direct messages, speed, private results, a suffix, …")
@app_commands.describe(
    name="Which one; without it you see them all", value="What it should be; without it, its default"
)
@app_commands.choices(name=NAMED)
async def prefer(
    interaction: discord.Interaction[DarkroomClient],
    name: str | None = None,
    value: Range[str, 1, SUFFIX] | None = None,
) -> None:
    async with refusing(interaction):
        preferences, me = interaction.client.desk.preferences, member_of(interaction).id
        if name is None and value is not None:
            raise Refused("Which preference should that be? Choose a name too.")
        if name is None:
            await say(interaction, everything(await preferences.of(me), interaction.client.tree.mention("prefer")))
            return
        chosen = await preferences.prefer(me, name, value or "")
        await say(interaction, f"From now on: {line(name, chosen)}")


@prefer.autocomplete("value")
async def values(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    """What the chosen preference can be."""
    name = str(getattr(interaction.namespace, "name", None) or "")
    if name == "suffix" or name not in NAMES:
        now = (await interaction.client.desk.preferences.of(member_of(interaction).id)).suffix
        return [Choice(name=now[:100], value=now[:100])] if name == "suffix" and now and not typed else []
    return [Choice(name=word, value=word) for word in WORDS.get(name, ("on", "off")) if typed.casefold() in word]


def everything(chosen: Preference, command: str = "`/prefer`") -> str:
    """All of a member's preferences, one a line, and how one is changed: `command` is where."""
    how = f"-# {command} with a name and a value changes one; without a value it is back to its default."
    return "\n".join(["**What you prefer**", *(line(name, chosen) for name in NAMES), how])


def line(name: str, chosen: Preference) -> str:
    """One preference as a member reads it."""
    value = getattr(chosen, name)
    said = {True: "on", False: "off", "": "none"}.get(value) or quoted(str(value), 400)
    return f"`{name}` **{said}** · {ABOUT[name]}"
