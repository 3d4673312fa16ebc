"""Recipes from other recipes: variation, reroll, remix, interpolation, exact mode, and newer weights. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.model_catalog import CatalogEntry
from bot.prompt import ParsedPrompt
from bot.prompt.capability_check import check_capabilities, check_sampler, choose_interval
from bot.prompt.concepts import balance_weights
from bot.prompt.model_parts import (
    choose_embeddings,
    renew_controls,
    renew_embeddings,
    renew_references,
    resolve_autoencoder,
    resolve_controls,
    resolve_references,
)
from bot.prompt.parsed_prompt import (
    CANDIDATES_PER_PICTURE,
    choose_evaluations,
    choose_sampling,
    count_left_out_layers,
    expand_turbo,
    fit_size,
    is_style_open,
)
from bot.prompt.part_flags import RequestedLora, merge_loras, resolve_loras
from bot.store import NewJob
from engine.contract import (
    MAX_COUNT,
    PIPELINE_SAMPLERS,
    TURBO_LORA,
    TURBO_SAMPLER,
    ControlImage,
    ImageToImage,
    Interpolation,
    Job,
    MalformedMessage,
    ModelPart,
    ModelProfile,
    NoiseAncestor,
    Quantization,
    Recipe,
    ReferenceImage,
    Sampler,
    candidate_index,
    count_rows,
    decode,
    encode,
    is_turbo,
    keep_style,
    noise_seed,
    recipe_for_image,
)

NOT_CHOSEN = "The judge has not chosen this job's pictures, so nobody knows their noise."
MAX_ANCESTORS = 8
INTERPOLATION_FRAMES = 13  # frames of an interpolation through two, three or four pictures, these pictures included
NOISE_SEED_COUNT = 2**32
LARGEST_BUCKET = 32
MAX_TURBO_STEPS = 50  # LCM's schedule has no more (diffusers' `original_inference_steps`)


def vary_recipe(recipe: Recipe, index: int, strength: float, seed: int) -> Recipe:
    """Return a variation of image `index`: its noise stream joins the lineage, and a fresh seed leads away from it.

    The lineage keeps eight ancestors. A ninth generation drops the oldest: its noise then starts from the second-oldest
    stream. So it resembles its parent less than `strength` says, by the drift of one step. Raises `UserError` if the
    sampler cannot make variations, or if the judge has not chosen yet.
    """
    check_choice(recipe)
    recipe, index = keep_conditioning(recipe, index), 0 if recipe.interpolation else index
    ancestor = NoiseAncestor(seed=recipe.seed, index=candidate_index(recipe, index), strength=strength)
    lineage = (*recipe.lineage, ancestor)[-MAX_ANCESTORS:]
    variation = msgspec.structs.replace(recipe, seed=seed, lineage=lineage, chosen_candidates=())
    check_sampler(variation)
    return variation


def check_choice(recipe: Recipe) -> None:
    """Raise `UserError` while the noise of each picture is unknown, since the judge has not chosen."""
    if recipe.needs_choice:
        raise UserError(NOT_CHOSEN)


def keep_conditioning(recipe: Recipe, index: int) -> Recipe:
    """Return the recipe with the conditioning of image `index` for all: in its style, and without an interpolation."""
    if recipe.interpolation is None:
        return keep_style(recipe, index)
    return msgspec.structs.replace(recipe_for_image(recipe, index), interpolation=None, v=1)


def interpolation_frame(recipe: Recipe, index: int) -> Recipe:
    """Return image `index` of an interpolation alone, with its own noise; any other recipe unchanged."""
    return msgspec.structs.replace(keep_conditioning(recipe, index), count=1) if recipe.interpolation else recipe


def interpolation_recipes(recipe: Recipe, target_prompt: str, frames: int) -> list[Recipe]:
    """Return the recipes of an interpolation of `frames` pictures from the recipe's prompt to another."""
    return [
        msgspec.structs.replace(
            recipe,
            interpolation=Interpolation(target_prompt, first, frames),
            count=min(MAX_COUNT, frames - first),
            chaos=0.0,
            mixed=False,
            candidate_count=0,
        )
        for first in range(0, frames, MAX_COUNT)
    ]


def can_interpolate(recipe: Recipe) -> bool:
    """Return whether its pictures differ in noise alone, and nobody has steered them."""
    is_plain = recipe.interpolation is None and not recipe.amendments
    is_plain = is_plain and (len(recipe.styles) < 2 or len(recipe.concepts) == 1)
    differs_in_noise = is_plain and not recipe.lineage and not recipe.chaos
    return (
        differs_in_noise
        and recipe.count > 1
        and recipe.sampler not in PIPELINE_SAMPLERS
        and not has_seed_overflow(recipe)
    )


def has_seed_overflow(recipe: Recipe) -> bool:
    """Return whether one of its pictures has noise without a valid seed: image `i` draws from `seed + i`."""
    return max(noise_seed(recipe, image) for image in range(recipe.count)) >= NOISE_SEED_COUNT


def interpolate_images(recipe: Recipe) -> list[Recipe]:
    """Return the recipes of an interpolation through all pictures of a recipe."""
    noises = tuple(noise_seed(recipe, image) for image in range(recipe.count))
    recipe = msgspec.structs.replace(recipe, candidate_count=0, chosen_candidates=(), v=1)  # v: the lowest it needs
    ranges = (
        (first, min(MAX_COUNT, INTERPOLATION_FRAMES - first)) for first in range(0, INTERPOLATION_FRAMES, MAX_COUNT)
    )
    return [
        msgspec.structs.replace(
            recipe, interpolation=Interpolation(None, first, INTERPOLATION_FRAMES, noises), count=count
        )
        for first, count in ranges
    ]


def reroll_recipe(recipe: Recipe, seed: int) -> Recipe:
    """Return the same recipe with other noise."""
    interpolation = recipe.interpolation
    if interpolation is not None:
        noises = tuple(seed + offset for offset in range(len(interpolation.noises)))
        interpolation = msgspec.structs.replace(interpolation, noises=noises)
    return msgspec.structs.replace(recipe, seed=seed, interpolation=interpolation, chosen_candidates=())


def remix_recipe(recipe: Recipe, parsed_prompt: ParsedPrompt, model_profile: ModelProfile) -> Recipe:
    """Return the recipe with another prompt and the same noise; flags change further settings.

    Raises `UserError` if the shape does not fit the model, if the model lacks a feature, or if another model is
    requested: its noise is not comparable.
    """
    _refuse_other_kinds(recipe, parsed_prompt)
    own_steps = parsed_prompt.steps
    parsed_prompt = _expand_turbo(parsed_prompt, recipe, model_profile)
    width, height = fit_size(parsed_prompt.ar, model_profile) if parsed_prompt.ar else (recipe.width, recipe.height)
    own_profile = msgspec.structs.replace(model_profile, sampler=recipe.sampler, steps=recipe.steps)
    sampler, steps = choose_sampling(parsed_prompt, own_profile)
    start, stop = choose_interval(parsed_prompt.interval, recipe.guidance_interval, sampler, model_profile)
    count = parsed_prompt.count or recipe.count
    remix = msgspec.structs.replace(
        recipe,
        **_remix_candidates(recipe, parsed_prompt, count, has_judge=model_profile.has_judge),
        concepts=balance_weights(parsed_prompt.concepts),
        styles=recipe.styles if is_style_open(parsed_prompt) else (),
        negative=parsed_prompt.negative,
        **_remix_chain(recipe, parsed_prompt, model_profile, sampler, steps),
        seed=recipe.seed if parsed_prompt.seed is None else parsed_prompt.seed,
        guidance=recipe.guidance if parsed_prompt.guidance is None else parsed_prompt.guidance,
        count=count,
        width=width,
        height=height,
        guidance_start=start,
        guidance_stop=stop,
        interpolation=None,
        mixed=recipe.mixed or (parsed_prompt.mix and len(parsed_prompt.concepts) > 1),
        loras=recipe.loras if parsed_prompt.loras is None else resolve_loras(parsed_prompt.loras, model_profile),
        **_remix_parts(recipe, parsed_prompt, model_profile),
    )
    if isinstance(remix.start, ImageToImage) and not is_turbo(recipe):
        remix = replace_start(remix, remix.start, None if own_steps else steps)
    check_capabilities(remix, model_profile)
    return pin_batch_shape(remix) if remix.bucket else remix


def _remix_chain(
    recipe: Recipe, parsed_prompt: ParsedPrompt, model_profile: ModelProfile, sampler: Sampler, steps: int
) -> dict[str, Any]:
    """Return sampler, steps and evaluations: those of the parent only where the chain is the parent's."""
    is_same_chain = (sampler, steps, parsed_prompt.quality) == (recipe.sampler, recipe.steps, 1.0)
    kept = recipe.evaluations if is_same_chain else None
    evaluations = choose_evaluations(parsed_prompt, sampler, steps, model_profile, kept)
    return {"sampler": sampler, "steps": steps, "evaluations": evaluations}


def _refuse_other_kinds(recipe: Recipe, parsed_prompt: ParsedPrompt) -> None:
    if parsed_prompt.end_prompt:
        raise UserError("A remix cannot start an interpolation: use /walk or --walk.")
    if parsed_prompt.model not in (None, recipe.model):
        raise UserError(f"A remix keeps its model, {recipe.model}: ask for another one by a new prompt.")


def _expand_turbo(parsed_prompt: ParsedPrompt, base: Recipe, model_profile: ModelProfile) -> ParsedPrompt:
    """Return the prompt for a remix of `base`: it keeps or adds the turbo LoRA, and leaves it with another sampler."""
    if not is_turbo(base):
        return expand_turbo(parsed_prompt, model_profile, base.loras)
    prompt = replace(parsed_prompt, turbo=False)
    named_loras = None if prompt.loras is None else list(prompt.loras)
    turbo_loras, other_loras = (
        [RequestedLora(lora.name, lora.weight) for lora in base.loras if (lora.name == TURBO_LORA) == is_wanted]
        for is_wanted in (True, False)
    )
    if prompt.sampler in (None, TURBO_SAMPLER):
        return prompt if named_loras is None else replace(prompt, loras=merge_loras([*turbo_loras, *named_loras]))
    return replace(
        prompt,
        steps=prompt.steps or model_profile.steps,
        guidance=model_profile.guidance if prompt.guidance is None else prompt.guidance,
        loras=merge_loras(other_loras if named_loras is None else named_loras),
    )


def replace_start(recipe: Recipe, start: ImageToImage, turbo_steps: int | None) -> Recipe:
    """Return the recipe with init images in place of noise.

    Of a turbo recipe's few steps a low strength would leave one: the schedule becomes finer, so that `turbo_steps` run.
    None: the schedule stays, since somebody chose its steps.
    """
    steps = recipe.steps
    if turbo_steps is not None and is_turbo(recipe):
        finer_schedules = range(turbo_steps, MAX_TURBO_STEPS)
        steps = next((n for n in finer_schedules if int(n * start.strength) >= turbo_steps), MAX_TURBO_STEPS)
    return msgspec.structs.replace(recipe, start=start, steps=steps)


def without_start(recipe: Recipe) -> Recipe:
    """Return the recipe without what it began with; a turbo recipe has only the steps that it ran."""
    steps = recipe.steps
    if is_turbo(recipe) and isinstance(recipe.start, ImageToImage):
        steps -= recipe.first_step
    return msgspec.structs.replace(recipe, start=None, steps=steps)


def _remix_candidates(recipe: Recipe, parsed_prompt: ParsedPrompt, count: int, *, has_judge: bool) -> dict[str, Any]:
    """Return the candidates of a remix: the chosen ones with their noise, unless it asks for a new choice."""
    is_best = has_judge and recipe.candidate_count > 0 if parsed_prompt.best is None else parsed_prompt.best
    keeps_choice = not parsed_prompt.best and parsed_prompt.seed is None and count <= len(recipe.chosen_candidates)
    if keeps_choice:
        return {"chosen_candidates": recipe.chosen_candidates[:count], "v": 1}
    return {"candidate_count": CANDIDATES_PER_PICTURE * count if is_best else 0, "chosen_candidates": (), "v": 1}


def _remix_parts(recipe: Recipe, parsed_prompt: ParsedPrompt, model_profile: ModelProfile) -> dict[str, Any]:
    """Return the further parts of a remix: those of the base that its flags do not name, and its own embeddings."""
    parts: dict[str, Any] = {"embeddings": choose_embeddings(parsed_prompt.read_texts, model_profile)}
    if parsed_prompt.controls is not None:
        pictures = _unique_pictures(recipe.controls)
        parts["controls"] = parsed_prompt.controls and resolve_controls(parsed_prompt.controls, pictures, model_profile)
    if parsed_prompt.references is not None:
        pictures = _unique_pictures(recipe.references)
        references = parsed_prompt.references
        parts["references"] = references and resolve_references(references, pictures, model_profile)
    if parsed_prompt.autoencoder is not None:
        parts["autoencoder"] = resolve_autoencoder(parsed_prompt.autoencoder, model_profile)
    if parsed_prompt.clip_skip is not None:
        parts["clip_skip"] = count_left_out_layers(parsed_prompt.clip_skip)
    return parts


def _unique_pictures(images: Iterable[ControlImage | ReferenceImage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(image.picture for image in images))


def without_controls(recipe: Recipe) -> Recipe:
    """Return the recipe without control images, whose shapes belong to the picture as it was; references stay."""
    return msgspec.structs.replace(recipe, controls=(), v=1)


def pin_batch_shape(recipe: Recipe) -> Recipe:
    """Return the recipe in exact mode: its batch shape is the power of two that holds its rows, whatever else runs.

    Above 32 rows it takes several forwards of 32, so that it also fits a small device. Chosen candidates keep the shape
    in which all candidates were drawn.
    """
    row_count = count_rows(msgspec.structs.replace(recipe, chosen_candidates=()))
    return msgspec.structs.replace(recipe, bucket=min(LARGEST_BUCKET, 1 << (row_count - 1).bit_length()))


def renew_recipe(old: Recipe, entry: CatalogEntry) -> tuple[Recipe, tuple[str, ...]]:
    """Update an old recipe to the current weights of its model and its parts. Return it with notes if they changed.

    Raises `UserError` if the model no longer accepts the recipe.
    """
    profile = entry.profile
    loras = resolve_loras((RequestedLora(lora.name, lora.weight) for lora in old.loras), profile)
    new = msgspec.structs.replace(
        old,
        revision=profile.revision or old.revision,
        dtype=profile.dtype,
        guidance_kind=profile.guidance_kind,
        loras=loras,
        quantization=profile.quantization,
        controls=renew_controls(old.controls, profile),
        references=renew_references(old.references, profile),
        embeddings=renew_embeddings(old.embeddings, profile),
        autoencoder=resolve_autoencoder(old.autoencoder.name if old.autoencoder else None, profile),
        v=1,  # the lowest that it needs
    )
    if new.needs_choice and not profile.has_judge:  # a button cannot leave out --best
        new = msgspec.structs.replace(new, candidate_count=0, v=1)
    check_capabilities(new, profile)
    return new, tuple(_changed_notes(old, new))


def _changed_notes(old: Recipe, new: Recipe) -> Iterator[str]:
    if old.revision and new.revision != old.revision:
        yield f"Made with a newer version of {new.model}: it will differ."
    if new.candidate_count != old.candidate_count:
        yield f"No worker with a judge for {new.model} is known, so all pictures that are drawn are shown."
    if new.quantization != old.quantization:
        yield (
            f"Made with {_describe_weights(old.quantization)} of {new.model}, and now drawn with "
            f"{_describe_weights(new.quantization)}: it will differ."
        )
    for noun, name in _changed_parts(old, new):
        yield f"Made with another version of the {noun} {name}: it will differ."


def _describe_weights(quantization: Quantization) -> str:
    return "whole weights" if quantization == "none" else f"{quantization} weights"


def _changed_parts(old: Recipe, new: Recipe) -> Iterator[tuple[str, str]]:
    """Yield noun and name of each part whose revision changed."""
    for noun, old_parts, new_parts in (
        ("LoRA", old.loras, new.loras),
        ("control", old.controls, new.controls),
        ("reference adapter", old.references, new.references),
        ("textual inversion", old.embeddings, new.embeddings),
        ("autoencoder", _as_tuple(old.autoencoder), _as_tuple(new.autoencoder)),
    ):
        revisions = {part.name: part.revision for part in old_parts}
        names = (part.name for part in new_parts if part.revision != (revisions.get(part.name) or part.revision))
        yield from ((noun, name) for name in dict.fromkeys(names))


def _as_tuple(part: ModelPart | None) -> tuple[ModelPart, ...]:
    return () if part is None else (part,)


def offline_note(entry: CatalogEntry, any_worker: bool) -> str:
    """Return the note, for good, on a model that no live worker offers. `any_worker`: whether one is online at all."""
    cause = "No worker had this model ready" if any_worker else "No worker was online"
    return (
        f"{cause} yet: this uses the last known settings of {entry.profile.name}: {entry.profile.dtype}, "
        f"and {entry.profile.steps} steps unless you say otherwise."
    )


def check_fits(new_job: NewJob) -> None:
    """Check that workers would accept the job. Raises `UserError` (400) now, which avoids a dead letter later."""
    try:
        decode(encode(new_job.to_job()), Job)
    except MalformedMessage as error:
        raise UserError(f"No worker would accept this job: {error}.", 400) from error


def member_key(key: str | None, member: Member) -> str | None:
    """Bind an idempotency key of any length to its member, so that nobody gets another's job by guessing."""
    return None if key is None else hashlib.sha256(f"{member.id}\0{key}".encode()).hexdigest()
