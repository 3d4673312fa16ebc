"""`/blend`, `/edit`, `/mix` and `/walk`: pictures from several pictures or prompts, or from an instruction.

Each writes a prompt with flags and starts a job as `/imagine` does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands
from discord.app_commands import Choice, Range

from bot.discord.commands import imagine
from bot.discord.commands.imagine import MIN_STRENGTH, submit_prompt
from bot.discord.declarations import declare
from bot.discord.responses import reply_on_error, respond_with_jobs, to_remote_file
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages
from bot.prompt.flag_values import MIN_FRAMES
from bot.prompt.flags import split_at_flags
from bot.prompt.parsed_prompt import DEFAULT_FRAMES
from engine.contract import MAX_COUNT, MAX_INTERPOLATION_FRAMES

if TYPE_CHECKING:
    from bot.discord.client import Interaction
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
    interaction: Interaction,
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
    interaction: Interaction,
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
async def suggest_editors(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest the models that edit pictures by words."""
    editors = [profile for profile in interaction.client.services.catalog.list_profiles() if profile.edits]
    return imagine.model_choices(editors, current)


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
    interaction: Interaction,
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


@app_commands.command(
    description="Interpolate from one prompt to another, picture by picture, with a film",
    extras=declare("imagine", help="from one prompt to another, with a film"),
)
@app_commands.rename(start="from", end="to")
@app_commands.describe(start="The first prompt", end="The last prompt", frames="How many pictures; twelve by default")
async def walk(
    interaction: Interaction,
    start: Range[str, 1, 900],
    end: Range[str, 1, 900],
    frames: Range[int, MIN_FRAMES, MAX_INTERPOLATION_FRAMES] = DEFAULT_FRAMES,
) -> None:
    async with reply_on_error(interaction):
        await submit_prompt(interaction, join_prompts(start, end, frames))


def join_prompts(start: str, end: str, frames: int) -> str:
    """Return one prompt with the words and flags of both. Raises `UserError` if one has no words."""
    (first_prompt, first_flags), (last_prompt, last_flags) = split_at_flags(start), split_at_flags(end)
    if not first_prompt or not last_prompt:
        raise UserError("Both prompts need words before any flag.")
    return " ".join(filter(None, (first_prompt, first_flags, last_flags, f"--frames {frames} --walk {last_prompt}")))
