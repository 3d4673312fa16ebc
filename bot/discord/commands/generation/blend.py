"""`/blend`: blends two to five pictures into one init image; a prompt is optional."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.attachments import to_remote_file
from bot.discord.commands.generation.imagine import MIN_STRENGTH
from bot.discord.declarations import declare
from bot.discord.responses import respond_with_jobs
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import AcceptedJob, Destination, Member

WEIGHT = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,4})?")


@app_commands.command(
    description="Blend two to five pictures into new ones", extras=declare("blend", help="two to five pictures in one")
)
@app_commands.describe(
    image1="The first picture; it sets the aspect ratio",
    image2="The second",
    image3="A third",
    image4="A fourth",
    image5="A fifth",
    weights="The weight of each picture, like 2 1; equal by default",
    prompt="What to show besides what the pictures show",
    strength="How much of the blend is redrawn",
    aspect="Width to height, like 3:2",
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
    strength: Range[float, MIN_STRENGTH, 1.0] | None = None,
    aspect: Range[str, 3, 16] | None = None,
) -> None:
    images = (image1, image2, image3, image4, image5)
    values = {"strength": strength, "ar": aspect}
    options: dict[str, Any] = {name: value for name, value in values.items() if value is not None}

    async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
        services = interaction.client.services
        parsed_weights = parse_weights(weights or "")
        init_images = InitImages(
            tuple(to_remote_file(image) for image in images if image is not None), weights=tuple(parsed_weights)
        )
        suffix = (await services.preferences.load_preference(member.id)).suffix if prompt else ""
        return await services.jobs.imagine(
            prompt or "",
            member,
            destination,
            key=f"blend:{interaction.id}",
            suffix=suffix,
            init_images=init_images,
            action="blend",
            **options,
        )

    await respond_with_jobs(interaction, submit)


def parse_weights(text: str) -> list[float]:
    """Parse weights with spaces or any of , ; : / between them. Raises `UserError`."""
    parts = [part for part in re.split(r"[\s,;:/]+", text) if part]
    if not all(WEIGHT.fullmatch(part) for part in parts):
        raise UserError("Weights are numbers, one for each picture, like 2 1.")
    return [float(part) for part in parts]
