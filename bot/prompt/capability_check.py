"""Checks what a model and a sampler can do together; refuses a recipe that needs more, with one sentence."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from bot.domain.errors import UserError
from bot.prompt.concepts import remove_emphasis
from engine.contract import (
    FULL_INTERVAL,
    PIPELINE_SAMPLERS,
    ImageToImage,
    find_lacking_feature,
    has_skipped_steps,
    is_edit,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.contract import Feature, ModelProfile, Recipe, Sampler

_LACKING_TEXTS: Mapping[Feature, str] = MappingProxyType(
    {
        "weights": "reads one text: leave out the weights (::)",
        "negative": "takes no negative prompt: leave out --no",
        "steps": "chooses its own number of steps: leave out --steps, --fast and --quality",
        "guidance": "chooses its own guidance: leave out --guidance and --chaos",
        "interval": "guides at every step: leave out --interval",
        "variation": "draws no variations: roll again, or remix",
        "picture": "begins with noise alone: leave out the picture",
        "mask": "takes no mask: leave it out",
        "strength": "starts from no picture, but edits one by words: add --edit",
        "blend": "takes one picture at most: leave out the others",
        "branch": "keeps no keyframes to branch from: remix instead",
        "tile": "draws no tiles: leave out --tile",
        "stop": "always runs to its last step: leave out --stop",
        "mix": "does not mix prompts: leave out --mix",
        "walk": "does not walk between pictures: leave out --walk",
        "evaluations": "skips no evaluation of its network: leave out --evaluations and --draft",
        "amendments": "draws on another server, which nobody can steer: change the prompt and ask again",
    }
)


def choose_interval(
    requested_interval: tuple[float, float] | None,
    default_interval: tuple[float, float],
    sampler: Sampler,
    model_profile: ModelProfile,
) -> tuple[float, float]:
    """Return the guidance interval: the requested one, else the usual one if sampler and model allow a choice."""
    if requested_interval is not None:
        return requested_interval
    return (
        FULL_INTERVAL
        if sampler in PIPELINE_SAMPLERS or model_profile.guidance_kind == "network" or "interval" in model_profile.lacks
        else default_interval
    )


def check_capabilities(recipe: Recipe, model_profile: ModelProfile) -> None:
    """Raise `UserError` if the model or the sampler cannot do what the recipe needs."""
    if recipe.sampler not in model_profile.samplers:
        raise UserError(
            f"{model_profile.name} does not take the sampler {recipe.sampler}: it takes "
            f"{join_names(model_profile.samplers)}."
        )
    check_features(recipe, model_profile)
    if model_profile.guidance_kind == "network":
        _check_built_in_guidance(recipe)
    if not set(model_profile.lacks) - {"evaluations"}:  # else another server draws it, with what it calls that sampler
        check_sampler(recipe)
    if recipe.clip_skip > model_profile.max_clip_skip:
        raise UserError(_clip_skip_text(model_profile))
    if recipe.needs_choice:
        _check_choice(recipe, model_profile)
    if recipe.mixed and any(concept.weight <= 0 for concept in recipe.concepts):
        raise UserError("With --mix every weight must be above 0: a mixed prompt cannot steer away from a part.")


def check_features(recipe: Recipe, model_profile: ModelProfile) -> None:
    """Raise `UserError` if the recipe uses what the model, behind another server's API, lacks."""
    feature = find_lacking_feature(recipe, model_profile)
    if feature is not None:
        raise UserError(f"{model_profile.name} {_LACKING_TEXTS[feature]}.")


def _clip_skip_text(model_profile: ModelProfile) -> str:
    if not model_profile.max_clip_skip:
        return f"{model_profile.name} always reads all layers of its text encoder: leave out --clip-skip."
    return f"{model_profile.name} takes --clip-skip 1 to {model_profile.max_clip_skip + 1}."


def check_start(recipe: Recipe, model_profile: ModelProfile) -> None:
    """Raise `UserError` if the recipe lacks the mask or picture that its model needs, or if its edit would tile.

    Call it on a complete recipe.
    """
    check_features(recipe, model_profile)
    start = recipe.start if isinstance(recipe.start, ImageToImage) else None
    if model_profile.required == "mask" and not (start and start.mask):
        raise UserError(
            f"{model_profile.name} only redraws a part of a picture: add a picture and a mask of that part, or take "
            "another model."
        )
    if model_profile.required == "picture":
        if start is None:
            raise UserError(f"{model_profile.name} only changes a picture: add one, or take another model.")
        check_edit_pictures(start, model_profile)
        if start.mask is not None:
            raise UserError(f"{model_profile.name} changes a picture as a whole: leave out the mask.")
        if start.strength < 1.0:
            raise UserError(f"{model_profile.name} changes a picture as a whole: leave out the strength.")
    if recipe.tile and is_edit(recipe, model_profile):
        raise UserError("A picture that is edited by words does not tile: leave out --tile.")


def check_edit_pictures(start: ImageToImage, model_profile: ModelProfile) -> None:
    """Raise `UserError` for more pictures than one edit of this model sees."""
    if len(start.pictures) > (most := model_profile.max_edit_pictures):
        limit = "one picture at a time" if most == 1 else f"up to {most} pictures at once"
        raise UserError(f"{model_profile.name} changes {limit}, and these are {len(start.pictures)}.")


def _check_choice(recipe: Recipe, model_profile: ModelProfile) -> None:
    """Refuse a choice without a judge, or without words that it could compare the pictures with."""
    if not model_profile.has_judge:
        raise UserError(f"{model_profile.name} has no judge that could choose the best pictures: leave out --best.")
    if not any(remove_emphasis(concept.text).strip() and concept.weight > 0 for concept in recipe.concepts):
        raise UserError("--best compares the pictures with the prompt, and there are no words: leave it out.")


def _check_built_in_guidance(recipe: Recipe) -> None:
    """Refuse a second row: a network that takes guidance as a number has none to steer away from."""
    if recipe.negative:
        raise UserError(
            f"{recipe.model} takes no negative prompt, since guidance is built into its network: leave out --no."
        )
    if recipe.guidance_interval != FULL_INTERVAL:
        raise UserError(
            f"{recipe.model} has guidance built into its network, so it holds at every step: leave out --interval."
        )


def check_sampler(recipe: Recipe) -> None:
    """Raise `UserError` if the unmodified pipeline lacks a feature that the recipe needs."""
    if recipe.sampler not in PIPELINE_SAMPLERS:
        return
    pipeline_text = f"The sampler {recipe.sampler} is the unmodified pipeline"
    if len(recipe.concepts) > 1:
        raise UserError(f"{pipeline_text}, which reads one text: leave out the weights (::), or take another sampler.")
    if recipe.lineage:
        raise UserError(f"{pipeline_text}, which draws no variations: roll again, or ask for another sampler.")
    if recipe.guidance_interval != FULL_INTERVAL:
        raise UserError(f"{pipeline_text}, which guides at every step: leave out --interval, or take another sampler.")
    if recipe.start is not None:
        raise UserError(f"{pipeline_text}, which begins with noise alone: take another sampler, such as ddim.")
    if recipe.amendments:
        raise UserError(f"{pipeline_text}, which cannot be steered, nor reproduce a steered picture.")
    unsupported_features = (
        (has_skipped_steps(recipe), "--evaluations or --draft"),
        (recipe.tile, "--tile"),
        (recipe.stop_at < 1, "--stop"),
        (recipe.interpolation is not None, "--walk"),
        (bool(recipe.controls), "--control"),
        (bool(recipe.references), "--reference"),
    )
    for is_used, flag in unsupported_features:
        if is_used:
            raise UserError(f"{pipeline_text}, which cannot do {flag}: leave it out, or take another sampler.")


def join_names(samplers: tuple[Sampler, ...]) -> str:
    """Join names: "ddpm, ddim and euler"."""
    return f"{', '.join(samplers[:-1])} and {samplers[-1]}" if len(samplers) > 1 else "".join(samplers)
