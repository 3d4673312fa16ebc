"""Works out which changes of a job's recipe a request means. Pure.

The recipe has every change that is made or waits, so that requests add up. The order: images, words, negative words,
guidance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from bot.domain.errors import UserError
from bot.domain.steering import SteeringRequest
from bot.domain.texts import shorten
from bot.prompt import parse
from bot.prompt.change_texts import describe_change, name_images
from bot.prompt.concepts import MAX_CHARACTERS, balance_weights, check_weights, clean_prompt, parse_concepts
from bot.prompt.flags import OUR_FLAGS, split_flags
from engine.contract import (
    MAX_COUNT,
    MAX_STEPS,
    Amendment,
    Change,
    Concept,
    DropImages,
    MalformedMessage,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    decode,
    encode,
    find_amendment_problem,
    list_final_images,
    settle_fades,
)

NOTHING_CHANGES = "Nothing in this changes the picture."
ONLY_WORDS = "While it develops, a new prompt has words, weights and --no: leave out --{}."
ONE_PROMPT = "While it develops, braces would make several pictures of one: leave them out."
ONLY_PLAIN_WORDS = "Words that are added while it develops have no flags: leave out --{}."
MAX_TEXT = 300  # characters of a change's line


@dataclass(frozen=True)
class RequestedChange:
    """One change, its line for members, and the recipe that has it, too."""

    change: Change
    text: str
    recipe: Recipe


def work_out_changes(request: SteeringRequest, recipe: Recipe, step: int, seed: int) -> list[RequestedChange]:
    """Return the changes in their order. `step`: the step that the job has reached; `seed`: for a split.

    Raises `UserError` for a change that cannot be, and where nothing would change.
    """
    first_recipe = recipe
    changes = list[RequestedChange]()
    for find_changes in (_change_images, _change_words, _change_negative, _change_guidance):
        for change, text in find_changes(request, recipe, seed):
            recipe = _add_change(recipe, change, step)
            changes.append(RequestedChange(change, shorten(text, MAX_TEXT), recipe))
    if recipe is first_recipe:
        raise UserError(NOTHING_CHANGES)
    return changes


_Found = Iterator[tuple[Change, str]]


def _add_change(recipe: Recipe, change: Change, step: int) -> Recipe:
    """Return the recipe with one more change, as if it held from `step` on. Raises `UserError` if it cannot be."""
    last = recipe.amendments[-1:]
    number = max((each.number for each in last), default=0) + 1
    amendment = Amendment(number, max([step, *(each.step for each in last)]), change)
    try:
        decode(encode(amendment), Amendment)
    except MalformedMessage as error:
        raise UserError(f"No worker would take this change: {error}.", 400) from error
    if problem := find_amendment_problem(recipe, amendment):
        raise UserError(problem)
    return msgspec.structs.replace(recipe, amendments=(*recipe.amendments, amendment))


def _change_images(request: SteeringRequest, recipe: Recipe, seed: int) -> _Found:
    alive = list_final_images(recipe)
    if not (request.keep or request.drop or request.split):
        return
    _check_alive((*request.keep, *request.drop), alive)
    dropped = {*request.drop, *(image for image in alive if request.keep and image not in request.keep)}
    if dropped:
        change = DropImages(tuple(sorted(dropped)))
        is_kept = request.keep and not request.drop
        yield change, f"keeps {name_images(request.keep)}" if is_kept else describe_change(change)
    if request.split is not None:
        image, total = request.split
        alive = tuple(each for each in alive if each not in dropped)
        _check_alive((image,), alive)
        places = _choose_places(recipe, alive, total)
        split = SplitImage(image, places, seed)
        yield split, describe_change(split)


def _check_alive(images: Sequence[int], alive: Sequence[int]) -> None:
    for image in images:
        if image not in alive:
            raise UserError(f"Image {image + 1} is not developing.")


def _choose_places(recipe: Recipe, alive: Sequence[int], total: int) -> tuple[int, ...]:
    """Return free places for the new images of a split, first those that never had one. Raises `UserError`."""
    if not 2 <= total <= MAX_COUNT:
        raise UserError(f"An image can be split into 2 to {MAX_COUNT}.")
    used = {place for each in recipe.amendments if isinstance(each.change, SplitImage) for place in each.change.places}
    free = sorted(
        (place for place in range(MAX_COUNT) if place not in alive),
        key=lambda place: (place in used or place < recipe.count, place),
    )
    if len(free) < total - 1:
        raise UserError(
            f"At most {MAX_COUNT} images develop at once, so {_count_places(len(free))} left: drop some first."
        )
    return tuple(sorted(free[: total - 1]))


def _count_places(count: int) -> str:
    return "no place is" if count == 0 else "one place is" if count == 1 else f"{count} places are"


def _change_words(request: SteeringRequest, recipe: Recipe, _seed: int) -> _Found:
    if not (request.say or request.prompt is not None or request.weights or request.concepts):
        return
    settled = settle_fades(recipe)
    old = settled.concepts
    mixed = settled.mixed
    concepts = request.concepts or (old if request.prompt is None else parse_words(request.prompt)[0])
    mixed = request.is_mixed if request.concepts else mixed
    if request.weights:
        if request.prompt is not None:
            raise UserError("A new prompt has its own weights: give one of both.")
        concepts = _set_weights(concepts, request.weights)
    if request.say.strip():
        concepts = _say(concepts, request.say, request.say_weight)
    check_weights(concepts)
    concepts = balance_weights(concepts)
    if sum(len(concept.text) for concept in concepts) > MAX_CHARACTERS:
        raise UserError(f"A prompt may have {MAX_CHARACTERS} characters; this one would have more.")
    if not 0 <= request.fade_steps <= MAX_STEPS:
        raise UserError(f"A fade takes 0 to {MAX_STEPS} steps.")
    if concepts != old:
        change = SetConcepts(concepts, mixed and len(concepts) > 1, request.fade_steps)
        yield change, request.label or describe_change(change)


def parse_words(prompt: str) -> tuple[tuple[Concept, ...], str]:
    """Return a new prompt's weighted parts and its negative words. Raises `UserError` for what cannot change."""
    _, flags = split_flags(clean_prompt(prompt))
    for flag in flags:
        if flag.name in OUR_FLAGS and flag.name != "no":
            raise UserError(ONLY_WORDS.format(flag.name))
    parsed = parse(prompt, None).prompts
    if len(parsed) != 1:
        raise UserError(ONE_PROMPT)
    return parsed[0].concepts, parsed[0].negative


def _set_weights(concepts: tuple[Concept, ...], weights: Mapping[int, float]) -> tuple[Concept, ...]:
    for index in weights:
        if not 0 <= index < len(concepts):
            raise UserError(f"The prompt has no part {index + 1}: it has {len(concepts)}.")
    return tuple(Concept(each.text, weights.get(index, each.weight)) for index, each in enumerate(concepts))


def _say(concepts: tuple[Concept, ...], text: str, weight: float | None) -> tuple[Concept, ...]:
    """Return the prompt with more words: as parts of their own if they have weights, else within its first part."""
    said = clean_prompt(text)
    _refuse_flags(said)
    if weight is None and "::" not in said:
        first = f"{concepts[0].text}, {said}" if concepts[0].text else said
        return (Concept(first, concepts[0].weight), *concepts[1:])
    if weight is not None and "::" in said:
        raise UserError("These words have weights of their own: give each weight once.")
    new = parse_concepts(said) if weight is None else (Concept(said, weight),)
    new_texts = {concept.text for concept in new}
    return (*(concept for concept in concepts if concept.text not in new_texts), *new)


def _refuse_flags(words: str) -> None:
    """Raise `UserError` for a flag: whoever reads or types the final prompt would take it for one."""
    if flags := split_flags(words)[1]:
        raise UserError(ONLY_PLAIN_WORDS.format(flags[0].name))


def _change_negative(request: SteeringRequest, recipe: Recipe, _seed: int) -> _Found:
    negative = request.negative
    if negative is None and request.prompt is not None:
        negative = parse_words(request.prompt)[1] or None
    if negative is None:
        return
    negative = clean_prompt(negative)
    _refuse_flags(negative)
    if negative != settle_fades(recipe).negative:
        change = SetNegative(negative)
        yield change, describe_change(change)


def _change_guidance(request: SteeringRequest, recipe: Recipe, _seed: int) -> _Found:
    if request.guidance is None and request.interval is None:
        return
    settled = settle_fades(recipe)
    old = SetGuidance(settled.guidance, *settled.guidance_interval)
    start, stop = (old.start, old.stop) if request.interval is None else request.interval
    change = SetGuidance(old.guidance if request.guidance is None else request.guidance, start, stop)
    if not 1 <= change.guidance <= 30:
        raise UserError("Guidance goes from 1 to 30.")
    if change != old:
        yield change, describe_change(change)
