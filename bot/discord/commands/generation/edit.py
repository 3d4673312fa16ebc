"""`/edit`: a model changes a picture as the words say, which may speak of two more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands
from discord.app_commands import Choice, Range

from bot.discord.attachments import to_remote_file
from bot.discord.checks import reply_on_error
from bot.discord.commands.generation import autocomplete
from bot.discord.commands.generation.imagine import submit_prompt
from bot.discord.declarations import declare
from bot.jobs.init_images import InitImages
from engine.contract import MAX_COUNT

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient


@app_commands.command(
    description="Change a picture as your words say", extras=declare("edit", help="one, changed as you say")
)
@app_commands.describe(
    picture="The picture to change",
    words="What to change, like: make it a winter night",
    model="Which model edits",
    count="How many pictures",
    seed="The same seed gives the same pictures",
    picture2="A second picture that the words may speak of",
    picture3="A third",
)
async def edit(
    interaction: discord.Interaction[DarkroomClient],
    picture: discord.Attachment,
    words: Range[str, 1, 2000],
    model: str | None = None,
    count: Range[int, 1, MAX_COUNT] | None = None,
    seed: Range[int, 0, 2**32 - 1] | None = None,
    picture2: discord.Attachment | None = None,
    picture3: discord.Attachment | None = None,
) -> None:
    values = {"edit": True, "model": model, "count": count, "seed": seed}
    options: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    async with reply_on_error(interaction):
        pictures = tuple(to_remote_file(each) for each in (picture, picture2, picture3) if each is not None)
        await submit_prompt(interaction, words, InitImages(pictures), **options)


@edit.autocomplete("model")
async def suggest_editors(interaction: discord.Interaction[DarkroomClient], current: str) -> list[Choice[str]]:
    """Suggest the models that edit pictures by words."""
    editors = [profile for profile in interaction.client.services.catalog.list_profiles() if profile.edits]
    return autocomplete.model_choices(editors, current)
