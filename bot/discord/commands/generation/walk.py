"""`/walk`: interpolates from one prompt to another in several pictures, with a film of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.checks import reply_on_error
from bot.discord.commands.generation.imagine import submit_prompt
from bot.discord.declarations import declare
from bot.domain.errors import UserError
from bot.prompt.flag_values import MIN_FRAMES
from bot.prompt.flags import split_at_flags
from bot.prompt.parsed_prompt import DEFAULT_FRAMES
from engine.contract import MAX_INTERPOLATION_FRAMES

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient


@app_commands.command(
    description="Interpolate from one prompt to another, picture by picture, with a film",
    extras=declare("imagine", help="from one prompt to another, with a film"),
)
@app_commands.rename(start="from", end="to")
@app_commands.describe(start="The first prompt", end="The last prompt", frames="How many pictures; twelve by default")
async def walk(
    interaction: discord.Interaction[DarkroomClient],
    start: Range[str, 1, 900],
    end: Range[str, 1, 900],
    frames: Range[int, MIN_FRAMES, MAX_INTERPOLATION_FRAMES] = DEFAULT_FRAMES,
) -> None:
    async with reply_on_error(interaction):
        await submit_prompt(interaction, join_prompts(start, end, frames))


def join_prompts(start: str, end: str, frames: int) -> str:
    """Return one prompt with the words and flags of both. Raises `UserError` if one has no words."""
    (first_prompt, first_flags), (last_prompt, last_flags) = _split_flags(start), _split_flags(end)
    return " ".join(
        part for part in (first_prompt, first_flags, last_flags, f"--frames {frames} --walk {last_prompt}") if part
    )


def _split_flags(text: str) -> tuple[str, str]:
    prompt, flags = split_at_flags(text)
    if not prompt:
        raise UserError("Both prompts need words before any flag.")
    return prompt, flags
