"""`/blend`: blends two to five pictures into one init image; a prompt is optional."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.chat.answer import answer
from bot.chat.brought import remote
from bot.chat.commands.imagine import STRENGTH
from bot.desk.bringing import Bring
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Member, Place, Ticket

WEIGHTS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,4})?")


@app_commands.command(description="Blend two to five pictures into new ones")
@app_commands.describe(
    image1="The first picture; it sets the aspect ratio",
    image2="The second",
    image3="A third",
    image4="A fourth",
    image5="A fifth",
    weights="The weight of each picture, like 2 1; equal by default",
    prompt="What to show besides what the pictures show",
    strength="How much of the blend is redrawn",
    shape="Width to height, like 3:2",
)
async def blend(
    interaction: discord.Interaction[DarkroomClient],
    image1: discord.Attachment,
    image2: discord.Attachment,
    image3: discord.Attachment | None = None,
    image4: discord.Attachment | None = None,
    image5: discord.Attachment | None = None,
    weights: Range[str, 1, 60] | None = None,
    prompt: Range[str, 1, 2000] | None = None,
    strength: Range[float, STRENGTH, 1.0] | None = None,
    shape: Range[str, 3, 16] | None = None,
) -> None:
    images = (image1, image2, image3, image4, image5)
    named = {"strength": strength, "ar": shape}
    options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}

    async def ask(member: Member, place: Place) -> list[Ticket]:
        desk, said = interaction.client.desk, weighing(weights or "")
        bring = Bring(tuple(remote(image) for image in images if image is not None), weights=tuple(said))
        suffix = (await desk.preferences.of(member.id)).suffix if prompt else ""
        return await desk.studio.imagine(
            prompt or "", member, place, key=f"blend:{interaction.id}", suffix=suffix, bring=bring, action="blend",
            **options,
        )  # fmt: skip

    await answer(interaction, ask)


def weighing(text: str) -> list[float]:
    """Parse weights with spaces, commas or colons between them. Raises `Refused`."""
    parts = [part for part in re.split(r"[\s,;:/]+", text) if part]
    if not all(WEIGHTS.fullmatch(part) for part in parts):
        raise Refused("Weights are numbers, one for each picture, like 2 1.")
    return [float(part) for part in parts]
