"""What each single image of a recipe is made with: its own recipe, the seed of its noise, its keyframe's step."""

from __future__ import annotations

import msgspec

from engine.contract.recipe import Concept, Interpolation, NoiseAncestor, Recipe


def recipe_for_image(recipe: Recipe, image: int) -> Recipe:
    """Return the recipe of one of its images.

    With chaos, each image has its own guidance scale, evenly spaced in octaves. At a chaos of 1 they go from half the
    recipe's (measured from 1, where guidance begins) to twice that; images that splits add have the last one's. In an
    interpolation, each image has its own mix of both prompts, or its own noise between two seeds. The first and last
    frame, and a frame that falls on a given seed, have that prompt or seed alone.
    """
    if recipe.interpolation is not None:
        return _interpolated_recipe(recipe, recipe.interpolation, image)
    last_candidate = max(recipe.count, recipe.candidate_count) - 1
    if not recipe.chaos or last_candidate == 0:
        return recipe
    position = min(candidate_index(recipe, image), last_candidate)
    octaves = recipe.chaos * (2 * position / last_candidate - 1)
    guidance = min(30.0, 1.0 + (recipe.guidance - 1.0) * 2.0**octaves)
    return msgspec.structs.replace(recipe, guidance=guidance)


def _interpolated_recipe(recipe: Recipe, interpolation: Interpolation, image: int) -> Recipe:
    last_frame = interpolation.total_frames - 1
    frame = min(interpolation.first + image, last_frame)
    if interpolation.end_prompt is not None:
        end_concepts = (
            Concept(recipe.concepts[0].text, 1.0 - frame / last_frame),
            Concept(interpolation.end_prompt, frame / last_frame),
        )
        concepts = tuple(concept for concept in end_concepts if concept.weight)
        recipe = msgspec.structs.replace(recipe, concepts=concepts, mixed=len(concepts) > 1)
    if not interpolation.noises:
        return recipe
    segment, offset = divmod(frame * (len(interpolation.noises) - 1), last_frame)
    start_seed = interpolation.noises[segment]
    if not offset:
        return msgspec.structs.replace(recipe, seed=start_seed, lineage=())
    return msgspec.structs.replace(
        recipe,
        seed=interpolation.noises[segment + 1],
        lineage=(NoiseAncestor(seed=start_seed, index=0, strength=offset / last_frame),),
    )


def noise_seed(recipe: Recipe, image: int) -> int:
    """Return the seed of an image's noise, from its own recipe (`recipe_for_image`)."""
    return recipe.seed if recipe.interpolation is not None else recipe.seed + candidate_index(recipe, image)


def candidate_index(recipe: Recipe, image: int) -> int:
    """Return the candidate that an image is: the chosen one, or without a choice the one of the same number."""
    return recipe.chosen_candidates[image] if recipe.chosen_candidates else image


def map_step(keyframe_step: int, keyframe_steps: int, steps: int) -> int:
    """Return the step at the same fraction of `steps`, rounded up; `steps` where none is left.

    Schedules spread their noise levels by the fraction of the steps. `InitLatents.at_noise_level` makes up for the
    remaining difference.
    """
    return -(-keyframe_step * steps // keyframe_steps)
