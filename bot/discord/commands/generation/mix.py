"""`/mix`: two prompts become one that lies between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.checks import reply_on_error
from bot.discord.commands.generation.imagine import submit_prompt
from bot.discord.declarations import declare
from bot.domain.errors import UserError
from bot.prompt.flags import split_at_flags

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient

MIN_WEIGHT = 0.05
MAX_WEIGHT = 0.95


@app_commands.command(
    description="Mix two prompts: pictures of what lies between them",
    extras=declare("imagine", help="two prompts in one"),
)
@app_commands.describe(
    first="What to show", second="The second prompt", weight="The weight of the first, of 1; half by default"
)
async def mix(
    interaction: discord.Interaction[DarkroomClient],
    first: Range[str, 1, 900],
    second: Range[str, 1, 900],
    weight: Range[float, MIN_WEIGHT, MAX_WEIGHT] = 0.5,
) -> None:
    async with reply_on_error(interaction):
        await submit_prompt(interaction, mix_prompts(first, second, weight))


def mix_prompts(first: str, second: str, weight: float) -> str:
    """Return one prompt with the concepts and flags of both; `weight` is the first one's share, of 1.

    Raises `UserError`.
    """
    parts = [_split_flags(text) for text in (first, second)]
    concepts = [f"{prompt}::{share:.3g}" for (prompt, _), share in zip(parts, (weight, 1 - weight), strict=True)]
    return " ".join([*concepts, *(flags for _, flags in parts if flags), "--mix"])


def _split_flags(text: str) -> tuple[str, str]:
    prompt, flags = split_at_flags(text)
    if not prompt:
        raise UserError("Each prompt needs words before any flag.")
    if "::" in prompt:
        raise UserError("Leave out the weights (::) here: the option weight says how much each counts.")
    return prompt, flags
