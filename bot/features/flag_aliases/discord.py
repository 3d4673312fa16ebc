"""`/prefer option`: flag aliases. `--mine` in a member's prompt then stands for the text that they set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Choice, Range

from bot.discord.commands.preferences import prefer
from bot.discord.job_choice import MAX_CHOICE_CHARS, MAX_CHOICES
from bot.discord.responses import member_of, reply_on_error, send_ephemeral
from bot.domain.texts import escape_discord
from bot.features.flag_aliases.rules import MAX_ALIAS_LENGTH, MAX_ALIASES
from bot.features.flag_aliases.service import FlagAliases

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient

# characters of a value, of all lines in one message, and of a line without value
MAX_VALUE_CHARS = 200
MESSAGE_BUDGET = 1700
LINE_OVERHEAD = 50
NO_ALIASES = "You have no flag alias yet. {} makes one: `--mine` then stands for the text that you set."

option = app_commands.Group(
    name="option", description="Flag aliases, which stand for what you often type", parent=prefer
)


@option.command(name="set", description="Set what a flag alias stands for; without a value it is deleted")
@app_commands.describe(name="Its name: mine is typed as --mine", value="Words and flags, like soft light --ar 3:2")
async def set_alias(
    interaction: discord.Interaction[DarkroomClient],
    name: Range[str, 1, 40],
    value: Range[str, 1, MAX_ALIAS_LENGTH] | None = None,
) -> None:
    async with reply_on_error(interaction):
        aliases = interaction.client.services.get(FlagAliases)
        member_id = member_of(interaction).id
        if value is None:
            await send_ephemeral(interaction, f"`--{await aliases.delete_alias(member_id, name)}` is deleted.")
            return
        stored_name = await aliases.set_alias(member_id, name, value)
        await send_ephemeral(
            interaction,
            (
                "From now on: "
                f"{render_alias(stored_name, (await aliases.list_aliases(member_id)).get(stored_name, value))}"
            ),
        )


@option.command(name="list", description="Your flag aliases, and what they stand for")
async def list_aliases(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with reply_on_error(interaction):
        aliases = await interaction.client.services.get(FlagAliases).list_aliases(member_of(interaction).id)
        await send_ephemeral(
            interaction, render_aliases(aliases, interaction.client.mention_command("prefer option set"))
        )


@set_alias.autocomplete("name")
async def suggest_aliases(interaction: discord.Interaction[DarkroomClient], current: str) -> list[Choice[str]]:
    """Suggest the aliases that exist, with what they stand for."""
    aliases = await interaction.client.services.get(FlagAliases).list_aliases(member_of(interaction).id)
    matches = {name: value for name, value in aliases.items() if current.strip().lower().removeprefix("--") in name}
    return [Choice(name=f"{name}: {value}"[:MAX_CHOICE_CHARS], value=name) for name, value in matches.items()][
        :MAX_CHOICES
    ]


PREFERENCES = {"prefer option list": "has your flag aliases"}


def render_aliases(aliases: Mapping[str, str], command: str) -> str:
    """Return all aliases of a member, one a line, and how to change them; `command` is the mention of the command for
    that.
    """
    if not aliases:
        return NO_ALIASES.format(command)
    max_chars = min(MAX_VALUE_CHARS, MESSAGE_BUDGET // len(aliases) - LINE_OVERHEAD)
    lines = (render_alias(name, value, max_chars) for name, value in aliases.items())
    hint = f"-# {command} makes one, of at most {MAX_ALIASES}; without a value it deletes one."
    return "\n".join(["**Your flag aliases**", *lines, hint])


def render_alias(name: str, value: str, max_chars: int = MAX_VALUE_CHARS) -> str:
    """Return one alias as a member reads it, with at most `max_chars` characters of what it stands for."""
    return f"`--{name}` stands for **{escape_discord(value, max_chars)}**"
