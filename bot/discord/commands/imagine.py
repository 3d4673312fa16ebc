"""`/imagine`, with an init image or a branch, and its autocomplete.

Nothing here waits for the engine: the job service admits the request, the response goes out, the courier does the rest.
Its choices know a model by what its workers announce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands
from discord.app_commands import Choice, Range

from bot.discord.components import branches
from bot.discord.declarations import declare
from bot.discord.job_choice import MAX_CHOICE_CHARS, MAX_CHOICES, recent_jobs_autocomplete
from bot.discord.responses import member_of, reply_on_error, respond_with_jobs, to_remote_file
from bot.domain.errors import UserError
from bot.jobs.init_images import InitImages
from bot.prompt import format_default_cost
from engine.contract import MAX_COUNT, MAX_STEPS, SAMPLER_TITLES
from engine.contract.fields import SAMPLER_ROWS

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member
    from engine.contract import ModelProfile, Sampler

MIN_STRENGTH = 0.05  # the least strength of an init image
MASK_WITHOUT_IMAGE = "A mask says which part of a picture is redrawn: add that picture as image."
BRANCH_WITH_IMAGE = "A branch starts from a job, so it takes no image."


@app_commands.command(description="Turn a prompt into pictures while you watch", extras=declare("imagine"))
@app_commands.describe(
    prompt="What to show. Flags like --ar 3:2 work here too",
    image="An init image: the picture to start from",
    strength="How much of that picture is redrawn",
    mask="A picture of the same shape: its white parts are redrawn",
    control="What of the control picture is followed, like canny:0.8 or canny:1:0-0.5",
    control_image="The picture for control; without it, the init image",
    reference="A picture whose content or style is taken over",
    branch="Branch off at a keyframe of a job, like JOB/2:400: picture 2, step 400",
    steps="Sampler steps, up to 1000",
    evaluations="At how many of the steps the network is asked: a number, all or auto",
    draft="Ask the network 25 times only: a first look, less fine",
    seed="The same seed gives the same pictures",
    guidance="How closely to follow the prompt",
    interval="In which part of the steps guidance holds, like 0.2-0.8",
    sampler="The method that turns noise into a picture",
    model="Which model",
    lora="A LoRA for the model, like name or name:0.8; several with commas",
    count="How many pictures",
    best="Draw twice as many, and show those nearest to the prompt",
    aspect="Width to height, like 3:2",
    negative="What to steer away from",
    fast="Few steps of a quick sampler",
    turbo="Four steps without guidance, if the model has a LoRA for that",
    relax="Use the relaxed queue, which does not count against your limit",
)
async def imagine(
    interaction: Interaction,
    prompt: Range[str, 1, 2000],
    image: discord.Attachment | None = None,
    strength: Range[float, MIN_STRENGTH, 1.0] | None = None,
    mask: discord.Attachment | None = None,
    control: Range[str, 1, 200] | None = None,
    control_image: discord.Attachment | None = None,
    reference: discord.Attachment | None = None,
    branch: Range[str, 1, 300] | None = None,
    steps: Range[int, 1, MAX_STEPS] | None = None,
    evaluations: Range[str, 1, 4] | None = None,
    draft: bool | None = None,
    seed: Range[int, 0, 2**32 - 1] | None = None,
    guidance: Range[float, 1, 30] | None = None,
    interval: Range[str, 3, 24] | None = None,
    sampler: str | None = None,
    model: str | None = None,
    lora: Range[str, 1, 300] | None = None,
    count: Range[int, 1, MAX_COUNT] | None = None,
    best: bool | None = None,
    aspect: Range[str, 3, 16] | None = None,
    negative: Range[str, 1, 1000] | None = None,
    fast: bool | None = None,
    turbo: bool | None = None,
    relax: bool | None = None,
) -> None:
    values = {"steps": steps, "seed": seed, "guidance": guidance, "sampler": sampler, "model": model, "count": count}
    values |= {"ar": aspect, "negative": negative, "fast": fast, "relax": relax, "interval": interval, "lora": lora}
    values |= {"strength": strength, "best": best, "turbo": turbo, "control": control, "draft": draft}
    values |= {"evaluations": evaluations}
    options: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    async with reply_on_error(interaction):
        if branch is not None and (image or mask or control_image or reference):
            raise UserError(BRANCH_WITH_IMAGE)
        if branch is not None:
            await branches.submit_branch_option(interaction, branch, prompt, options)
        else:
            images = collect_init_images(image, mask, control_image, reference)
            await submit_prompt(interaction, prompt, images, **options)


def collect_init_images(
    image: discord.Attachment | None,
    mask: discord.Attachment | None,
    control_image: discord.Attachment | None = None,
    reference: discord.Attachment | None = None,
) -> InitImages | None:
    """Return the pictures, not fetched yet; None for none. Raises `UserError` for one too large, or a mask alone."""
    if mask is not None and image is None:
        raise UserError(MASK_WITHOUT_IMAGE)
    pictures, masks, controls, references = (
        () if file is None else (to_remote_file(file),) for file in (image, mask, control_image, reference)
    )
    if not (pictures or controls or references):
        return None
    return InitImages(pictures, next(iter(masks), None), controls=controls, references=references)


async def submit_prompt(
    interaction: Interaction, prompt: str, init_images: InitImages | None = None, **options: Any
) -> None:
    """Submit a prompt that a member typed anywhere, with their suffix and init images."""

    async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
        services = interaction.client.services
        key = f"imagine:{interaction.id}"
        suffix = (await services.preferences.load_preference(member.id)).suffix
        return await services.jobs.imagine(
            prompt, member, destination, key=key, suffix=suffix, init_images=init_images, **options
        )

    await respond_with_jobs(interaction, submit)


def _has_keyframes(view: JobView) -> bool:
    return bool(view.ladder_images) and view.deleted_at is None


imagine.autocomplete("branch")(recent_jobs_autocomplete(_has_keyframes))


@imagine.autocomplete("prompt")
async def suggest_prompts(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest the member's own latest prompts."""
    prompts = await interaction.client.services.history.recent_prompts(member_of(interaction).id)
    matches = [
        prompt for prompt in prompts if len(prompt) <= MAX_CHOICE_CHARS and current.casefold() in prompt.casefold()
    ]
    return [Choice(name=prompt, value=prompt) for prompt in matches][:MAX_CHOICES]


@imagine.autocomplete("model")
async def suggest_models(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest the models that workers have in memory or on disk."""
    return model_choices(interaction.client.services.catalog.list_profiles(), current)


@imagine.autocomplete("sampler")
async def suggest_samplers(interaction: Interaction, current: str) -> list[Choice[str]]:
    advice: dict[Sampler, str] = {
        name: await interaction.translate(text) or text for name, text in SAMPLER_ADVICE.items()
    }
    return sampler_choices(_selected_model(interaction), current, advice)


@imagine.autocomplete("lora")
async def suggest_loras(interaction: Interaction, current: str) -> list[Choice[str]]:
    return lora_choices(_selected_model(interaction), current)


@imagine.autocomplete("control")
async def suggest_controls(interaction: Interaction, current: str) -> list[Choice[str]]:
    return control_choices(_selected_model(interaction), current)


def _selected_model(interaction: Interaction) -> ModelProfile | None:
    """Return the model that is chosen so far, else the default."""
    return interaction.client.services.catalog.find_profile(getattr(interaction.namespace, "model", None))


SAMPLER_ADVICE: Mapping[Sampler, str] = MappingProxyType({row.name: row.advice for row in SAMPLER_ROWS})


def sampler_choices(
    model: ModelProfile | None, current: str, advice: Mapping[Sampler, str] = SAMPLER_ADVICE
) -> list[Choice[str]]:
    """Return the model's samplers, each with its translated advice; all of them if the model is unknown."""
    query = current.casefold()
    sampler_names = model.samplers if model else tuple(SAMPLER_TITLES)
    labels = ((name, f"{SAMPLER_TITLES[name]}: {advice[name]}"[:MAX_CHOICE_CHARS]) for name in sampler_names)
    choices = [Choice(name=text, value=name) for name, text in labels if query in f"{name} {text}".casefold()]
    return choices[:MAX_CHOICES]


def lora_choices(model: ModelProfile | None, current: str) -> list[Choice[str]]:
    """Return the model's LoRAs, each at its usual weight, behind what was typed before the last comma."""
    return _complete_list([f"{lora.name}:{lora.weight:g}" for lora in (model.loras if model else ())], current)


def control_choices(model: ModelProfile | None, current: str) -> list[Choice[str]]:
    """Return the model's control networks, behind what was typed before the last comma."""
    return _complete_list([control.name for control in (model.controls if model else ())], current)


def _complete_list(names: Sequence[str], current: str) -> list[Choice[str]]:
    """Complete the last name of a list with commas."""
    before, comma, query = current.rpartition(",")
    prefix = f"{before.strip()}, " if comma else ""
    texts = [f"{prefix}{name}" for name in names if query.strip().casefold() in name.casefold()]
    return [Choice(name=text, value=text) for text in texts if len(text) <= MAX_CHOICE_CHARS][:MAX_CHOICES]


def model_choices(all_models: list[ModelProfile], current: str) -> list[Choice[str]]:
    """Return models by name with what a picture costs; one that is only on disk says that it is loaded on demand."""
    notes = {model.name: _describe_model(model) for model in reversed(all_models)}
    names = [
        name for name in dict.fromkeys(model.name for model in all_models) if current.casefold() in name.casefold()
    ]
    return [Choice(name=f"{name}{notes[name]}"[:MAX_CHOICE_CHARS], value=name) for name in names][:MAX_CHOICES]


def _describe_model(model: ModelProfile) -> str:
    """Return " (about 12 s a picture, loaded on demand)", or what of it is known."""
    parts = [format_default_cost(model), "" if model.loaded else "loaded on demand"]
    text = ", ".join(part for part in parts if part)
    return f" ({text})" if text else ""
