"""`/walk`: from one prompt to another in several pictures, and a film of them."""

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


@app_commands.command(description="From one prompt to another, picture by picture, and a film of it")
@app_commands.rename(start="from", end="to")
@app_commands.describe(
    start="Where the walk begins",
    end="Where it leads",
    frames="How many pictures; twelve, if you don't say",
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
    """One prompt of both, with the flags of both. Raises `Refused` where one of them has no words."""
    (words, flags), (others, more) = _parted(start), _parted(end)
    return " ".join(part for part in (words, flags, more, f"--frames {frames} --walk {others}") if part)


def _parted(text: str) -> tuple[str, str]:
    words, flags = parted(text)
    if not words:
        raise Refused("Both ends of a walk need words, before any flag.")
    return words, flags
