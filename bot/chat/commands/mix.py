"""`/mix`: two prompts become one that lies between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.chat.commands.imagine import typed
from bot.chat.permitted import refusing
from bot.prompt.flags import parted
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

LEAST, MOST = 0.05, 0.95


@app_commands.command(description="Mix two prompts: pictures of what lies between them")
@app_commands.describe(
    first="What to show",
    second="And what else",
    weight="The weight of the first, of 1; half by default",
)
async def mix(
    interaction: discord.Interaction[DarkroomClient],
    first: Range[str, 1, 900],
    second: Range[str, 1, 900],
    weight: Range[float, LEAST, MOST] = 0.5,
) -> None:
    async with refusing(interaction):
        await typed(interaction, between(first, second, weight))


def between(first: str, second: str, weight: float) -> str:
    """Return one prompt with the concepts and flags of both; `weight` is the first one's share, of 1.

    Raises `Refused`.
    """
    parts = [_parted(text) for text in (first, second)]
    words = [f"{said}::{share:.3g}" for (said, _), share in zip(parts, (weight, 1 - weight), strict=True)]
    return " ".join([*words, *(flags for _, flags in parts if flags), "--mix"])


def _parted(text: str) -> tuple[str, str]:
    words, flags = parted(text)
    if not words:
        raise Refused("Each prompt needs words before any flag.")
    if "::" in words:
        raise Refused("Leave out the weights (::) here: the option weight says how much each counts.")
    return words, flags
