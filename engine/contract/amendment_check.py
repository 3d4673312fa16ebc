"""Why a recipe cannot be amended, as one sentence. Pure; the bot asks before it takes a change, the engine decides."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.contract.amendments import (
    Amendment,
    Change,
    Concept,
    DropImages,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
)
from engine.contract.fields import FULL_INTERVAL, MAX_AMENDMENTS, MAX_CONCEPTS
from engine.contract.recipe import Recipe
from engine.contract.steering import Timeline, list_final_images

TOO_MANY = f"This picture has been changed {MAX_AMENDMENTS} times, which is the most."
TOO_LATE = "This picture is as good as finished."
A_WALK = "The pictures of a walk cannot be steered."
NETWORK_INTERVAL = "This model has guidance built into its network, so it holds at every step."
CANDIDATES = "Its pictures are chosen among candidates at the end, so none can be dropped or split now."


def find_amendment_problem(recipe: Recipe, amendment: Amendment) -> str:
    """Return why the recipe cannot be amended so, as one sentence; empty if it can."""
    if len(recipe.amendments) >= MAX_AMENDMENTS:
        return TOO_MANY
    if amendment.step >= recipe.end_step - 1:
        return TOO_LATE
    if recipe.interpolation is not None:
        return A_WALK
    if any(later.step > amendment.step or later.number >= amendment.number for later in recipe.amendments):
        return "An amendment cannot come before an earlier one."
    return _find_change_problem(recipe, amendment)


def find_amendments_problem(recipe: Recipe) -> str:
    """Return why a recipe's amendments contradict it or each other, as one sentence; empty if they do not."""
    checked = msgspec.structs.replace(recipe, amendments=())
    for amendment in recipe.amendments:
        if problem := find_amendment_problem(checked, amendment):
            return problem
        checked = msgspec.structs.replace(checked, amendments=(*checked.amendments, amendment))
    return ""


def _find_change_problem(recipe: Recipe, amendment: Amendment) -> str:
    change: Change = amendment.change
    match change:
        case SetConcepts():
            old_concepts = _list_faded_concepts(recipe, amendment) if change.fade_steps > 1 else ()
            return _find_prompt_problem(old_concepts, change)
        case SetNegative():
            return ""
        case SetGuidance():
            if recipe.guidance_kind == "network" and (change.start, change.stop) != FULL_INTERVAL:
                return NETWORK_INTERVAL
            return "Guidance cannot stop before it starts." if change.start > change.stop else ""
        case DropImages() | SplitImage():
            return _find_image_problem(recipe, change)


def _list_faded_concepts(recipe: Recipe, amendment: Amendment) -> tuple[Concept, ...]:
    """Return the concepts that a change of the prompt fades from; an earlier fade may have come half-way."""
    timeline = Timeline(msgspec.structs.replace(recipe, amendments=(*recipe.amendments, amendment)))
    timeline.advance(amendment.step)
    return timeline.faded_concepts


def _find_prompt_problem(old_concepts: Sequence[Concept], change: SetConcepts) -> str:
    concepts = (*old_concepts, *change.concepts)
    if change.mixed and any(concept.weight <= 0 for concept in concepts):
        return "Every concept of a mixed prompt needs a weight above 0."
    if len({concept.text for concept in concepts}) > MAX_CONCEPTS:
        return f"Old and new prompt together have more than {MAX_CONCEPTS} parts."
    if all(concept.weight == 0 for concept in change.concepts):
        return "A prompt needs a part with a weight other than 0."
    return ""


def _find_image_problem(recipe: Recipe, change: DropImages | SplitImage) -> str:
    if recipe.candidate_count or recipe.chosen_candidates:
        return CANDIDATES
    alive = set(list_final_images(recipe))
    for image in change.images if isinstance(change, DropImages) else (change.image,):
        if image not in alive:
            return f"Image {image + 1} is not developing."
    if isinstance(change, DropImages):
        return "" if alive - set(change.images) else "One image has to stay."
    if len(set(change.places)) < len(change.places) or alive & set(change.places):
        return "An image can be split only into free places."
    return ""
