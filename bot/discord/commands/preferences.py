"""`/prefer`: a member's preferences, shown and set. They hold in every server.

`suffix`, `remix` and `auto_dm` have Midjourney's names; `set` changes every preference. Features may add subcommands.

`/fast`, `/relax`, `/turbo`, `/stealth`, `/public`: shortcuts for the preferences speed and results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from discord import app_commands
from discord.app_commands import Choice, Range

from bot.discord.declarations import declare, list_preference_commands
from bot.discord.job_choice import MAX_CHOICE_CHARS
from bot.discord.responses import member_of, reply_on_error, send_ephemeral
from bot.domain.texts import escape_discord
from bot.jobs.preferences import CHOICES, MAX_SUFFIX, NAMES, Preference
from engine.contract import find_turbo

if TYPE_CHECKING:
    from bot.discord.client import Interaction

DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
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
NAME_CHOICES = [Choice(name=f"{name}: {DESCRIPTIONS[name]}", value=name) for name in NAMES]


prefer = app_commands.Group(
    name="prefer",
    description="Your preferences: pings, speed, a suffix, flag aliases, …",
    extras=declare("prefer", help="pings, privacy, flag aliases; short: `/fast` `/relax` `/stealth` `/public`"),
)


@prefer.command(description="All your preferences")
async def show(interaction: Interaction) -> None:
    async with reply_on_error(interaction):
        preferences = await interaction.client.services.preferences.load_preference(member_of(interaction).id)
        await send_ephemeral(interaction, render_preferences(preferences, interaction.client.mention_command))


@prefer.command(name="set", description="Change one: pings, direct messages, speed, private results, a suffix, …")
@app_commands.describe(name="Which one", value="What it should be; without it, its default")
@app_commands.choices(name=NAME_CHOICES)
async def set_preference(interaction: Interaction, name: str, value: Range[str, 1, MAX_SUFFIX] | None = None) -> None:
    await _set_preference(interaction, name, value or "")


@prefer.command(description="Words and flags that are added to every prompt of yours; without any, none are")
@app_commands.describe(value="What is added, like soft light --ar 3:2")
async def suffix(interaction: Interaction, value: Range[str, 1, MAX_SUFFIX] | None = None) -> None:
    await _set_preference(interaction, "suffix", value or "")


@prefer.command(description="Whether V and 🔄 ask for another prompt first: switches it on, or off again")
async def remix(interaction: Interaction) -> None:
    await _toggle_preference(interaction, "remix")


@prefer.command(description="Whether finished pictures also come as direct messages: switches it on, or off again")
async def auto_dm(interaction: Interaction) -> None:
    await _toggle_preference(interaction, "direct")


async def _set_preference(interaction: Interaction, name: str, value: str) -> None:
    async with reply_on_error(interaction):
        preferences = await interaction.client.services.preferences.set_preference(
            member_of(interaction).id, name, value
        )
        await send_ephemeral(interaction, f"From now on: {render_preference(name, preferences)}")


async def _toggle_preference(interaction: Interaction, name: str) -> None:
    preferences = interaction.client.services.preferences
    async with reply_on_error(interaction):
        is_on = bool(getattr(await preferences.load_preference(member_of(interaction).id), name))
        await _set_preference(interaction, name, "off" if is_on else "on")


@set_preference.autocomplete("value")
async def suggest_values(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest values of the chosen preference."""
    name = str(getattr(interaction.namespace, "name", None) or "")
    if name == "suffix":
        preferences = await interaction.client.services.preferences.load_preference(member_of(interaction).id)
        suffix = preferences.suffix[:MAX_CHOICE_CHARS]
        return [Choice(name=suffix, value=suffix)] if suffix and not current else []
    words = CHOICES.get(name, ("on", "off")) if name in NAMES else ()
    return [Choice(name=word, value=word) for word in words if current.casefold() in word]


def render_preferences(preferences: Preference, mention: Callable[[str], str]) -> str:
    """Return all preferences, one a line, and how to change one: `mention` names a command."""
    hint = f"""-# {mention("prefer set")} with a name and a value changes one; without a value it is back to its \
default."""
    further = [f" {mention(command)} {words}." for command, words in list_preference_commands().items()]
    shown = [render_preference(name, preferences) for name in NAMES]
    return "\n".join(["**Your preferences**", *shown, hint + "".join(further)])


def render_preference(name: str, preferences: Preference) -> str:
    """Return one preference as a member reads it."""
    value = getattr(preferences, name)
    text = {True: "on", False: "off", "": "none"}.get(value) or escape_discord(str(value), 400)
    return f"`{name}` **{text}** · {DESCRIPTIONS[name]}"


NO_TURBO_TEXT = """Turbo is not available here; your speed is unchanged. For a quicker picture add `--fast`: \
it takes 30 steps. {fast} keeps your jobs in the usual queue."""
TURBO_TEXT = """Turbo is not a speed here; yours is unchanged. For a quicker picture add `--turbo`: \
it takes 4 steps. {fast} keeps your jobs in the usual queue."""


@app_commands.command(
    description="From now on use the usual queue, which counts against your limit", extras=declare("prefer")
)
async def fast(interaction: Interaction) -> None:
    await _set_preference(interaction, "speed", "fast")


@app_commands.command(
    description="From now on use the relaxed queue, which does not count against your limit", extras=declare("prefer")
)
async def relax(interaction: Interaction) -> None:
    await _set_preference(interaction, "speed", "relaxed")


@app_commands.command(description="Says why there is no third speed, and what is quicker", extras=declare("prefer"))
async def turbo(interaction: Interaction) -> None:
    model_profile = interaction.client.services.catalog.find_profile(None)
    text = TURBO_TEXT if model_profile and find_turbo(model_profile) else NO_TURBO_TEXT
    await send_ephemeral(interaction, text.format(fast=interaction.client.mention_command("fast")))


@app_commands.command(
    description="From now on only you see your results, where the server's rules allow it", extras=declare("prefer")
)
async def stealth(interaction: Interaction) -> None:
    await _set_preference(interaction, "results", "private")


@app_commands.command(description="From now on everybody in the channel sees your results", extras=declare("prefer"))
async def public(interaction: Interaction) -> None:
    await _set_preference(interaction, "results", "public")
