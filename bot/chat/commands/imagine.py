"""`/imagine`, with an init image or a branch, and its autocomplete.

Nothing here waits for the engine: the studio admits the request, the response goes out, the courier does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import discord
from discord import Locale, app_commands
from discord.app_commands import Choice, Range

from bot.chat.answer import answer, member_of
from bot.chat.brought import remote
from bot.chat.commands import offered
from bot.chat.permitted import refusing
from bot.chat.presses import branching
from bot.chat.which import CHOICE, OFFERED, recent_jobs
from bot.desk.bringing import Bring
from bot.refused import Refused
from engine.job import MAX_COUNT, MAX_STEPS

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Member, Place, Ticket
    from engine.job import Warm

STRENGTH = 0.05  # the least strength of an init image
MASKLESS = "A mask says which part of a picture is redrawn: add that picture as image."
EITHER = "A branch starts from a job, so it takes no image."


@app_commands.command(description="Turn a prompt into pictures while you watch")
@app_commands.describe(
    prompt="What to show. Flags like --ar 3:2 work here too",
    image="An init image: the picture to start from",
    strength="How much of that picture is redrawn",
    mask="A picture of the same shape: its white parts are redrawn",
    branch="Branch off at a keyframe of a job, like JOB/2:400: picture 2, step 400",
    steps="More steps, finer and slower",
    seed="The same seed gives the same pictures",
    guidance="How closely to follow the prompt",
    interval="In which part of the steps guidance holds, like 0.2-0.8",
    sampler="The method that turns noise into a picture",
    model="Which model",
    lora="A LoRA for the model, like name or name:0.8; several with commas",
    count="How many pictures",
    aspect="Width to height, like 3:2",
    negative="What to steer away from",
    fast="Few steps of a quick sampler",
    relax="Wait longer, and spend nothing of your limit",
)
async def imagine(
    interaction: discord.Interaction[DarkroomClient],
    prompt: Range[str, 1, 2000],
    image: discord.Attachment | None = None,
    strength: Range[float, STRENGTH, 1.0] | None = None,
    mask: discord.Attachment | None = None,
    branch: Range[str, 1, 300] | None = None,
    steps: Range[int, 1, MAX_STEPS] | None = None,
    seed: Range[int, 0, 2**32 - 1] | None = None,
    guidance: Range[float, 1, 30] | None = None,
    interval: Range[str, 3, 24] | None = None,
    sampler: str | None = None,
    model: str | None = None,
    lora: Range[str, 1, 300] | None = None,
    count: Range[int, 1, MAX_COUNT] | None = None,
    aspect: Range[str, 3, 16] | None = None,
    negative: Range[str, 1, 1000] | None = None,
    fast: bool | None = None,
    relax: bool | None = None,
) -> None:
    named = {"steps": steps, "seed": seed, "guidance": guidance, "sampler": sampler, "model": model, "count": count}
    named |= {"ar": aspect, "negative": negative, "fast": fast, "relax": relax, "interval": interval, "lora": lora}
    named |= {"strength": strength}
    options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    async with refusing(interaction):
        if branch is not None and (image or mask):
            raise Refused(EITHER)
        if mask is not None and image is None:
            raise Refused(MASKLESS)
        if branch is not None:
            await branching.typed(interaction, branch, prompt, options)
        else:
            await typed(interaction, prompt, beginning(image, mask), **options)


def beginning(image: discord.Attachment | None, mask: discord.Attachment | None) -> Bring | None:
    """Return the init image, not fetched yet; None for none. Raises `Refused` for one that is too large."""
    return None if image is None else Bring((remote(image),), None if mask is None else remote(mask))


async def typed(
    interaction: discord.Interaction[DarkroomClient], prompt: str, bring: Bring | None = None, **options: Any
) -> None:
    """Submit a prompt that a member typed anywhere, with their suffix. `bring`: init images."""

    async def ask(member: Member, place: Place) -> list[Ticket]:
        desk, key = interaction.client.desk, f"imagine:{interaction.id}"
        suffix = (await desk.preferences.of(member.id)).suffix
        return await desk.studio.imagine(prompt, member, place, key=key, suffix=suffix, bring=bring, **options)

    await answer(interaction, ask)


@imagine.autocomplete("branch")
async def branches(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    """Suggest jobs with keyframes; a step can be typed behind."""
    return await recent_jobs(lambda view: bool(view.ladders) and view.deleted is None)(interaction, typed)


@imagine.autocomplete("prompt")
async def recent_prompts(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    """Suggest the member's own latest prompts."""
    prompts = await interaction.client.desk.shelf.prompts(member_of(interaction).id)
    short = [each for each in prompts if len(each) <= CHOICE and typed.casefold() in each.casefold()]
    return [Choice(name=each, value=each) for each in short][:OFFERED]


@imagine.autocomplete("model")
async def models(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    """Suggest the models that workers have in memory or on disk."""
    return offered.models(interaction.client.studio.models(), typed)


@imagine.autocomplete("sampler")
async def samplers(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    return offered.samplers(_model(interaction), typed, german=interaction.locale is Locale.german)


@imagine.autocomplete("lora")
async def loras(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[Choice[str]]:
    return offered.loras(_model(interaction), typed)


def _model(interaction: discord.Interaction[DarkroomClient]) -> Warm | None:
    """Return the model that is chosen so far, else the default."""
    return interaction.client.studio.model(getattr(interaction.namespace, "model", None))
