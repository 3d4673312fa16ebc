"""`/walk`: interpolates from one prompt to another in several pictures, with a film of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.chat.commands.imagine import typed
from bot.chat.permitted import refusing
from bot.prompt.flags import parted
from bot.prompt.request import FRAMES
from bot.prompt.values import LEAST_FRAMES
from bot.refused import Refused
from engine.job import MAX_FRAMES

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient


@app_commands.command(description="Interpolate from one prompt to another, picture by picture, with a film")
@app_commands.rename(start="from", end="to")
@app_commands.describe(
    start="The first prompt",
    end="The last prompt",
    frames="How many pictures; twelve by default",
)
async def walk(
    interaction: discord.Interaction[DarkroomClient],
    start: Range[str, 1, 900],
    end: Range[str, 1, 900],
    frames: Range[int, LEAST_FRAMES, MAX_FRAMES] = FRAMES,
) -> None:
    async with refusing(interaction):
        await typed(interaction, leading(start, end, frames))


def leading(start: str, end: str, frames: int) -> str:
    """Return one prompt with the words and flags of both. Raises `Refused` if one has no words."""
    (words, flags), (others, more) = _parted(start), _parted(end)
    return " ".join(part for part in (words, flags, more, f"--frames {frames} --walk {others}") if part)


def _parted(text: str) -> tuple[str, str]:
    words, flags = parted(text)
    if not words:
        raise Refused("Both prompts need words before any flag.")
    return words, flags
