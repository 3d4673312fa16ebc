"""Classifier-free guidance of a recipe: the steps where it holds, and the network rows that it takes."""

from __future__ import annotations

from engine.contract.recipe import Recipe


def is_guided(recipe: Recipe, step: int) -> bool:
    """Return whether guidance holds at this step."""
    return is_in_interval(recipe.guidance_interval, step, recipe.steps)


def find_guided_steps(recipe: Recipe, first_step: int, end_step: int) -> tuple[int, int]:
    """Return between which of the steps from `first_step` to before `end_step` guidance holds: from, to before."""
    first_guided_step, end_of_guidance = _interval_steps(recipe.guidance_interval, recipe.steps)
    return max(first_guided_step, first_step), min(end_of_guidance, end_step)


def is_in_interval(interval: tuple[float, float], step: int, steps: int) -> bool:
    """Return whether this step of `steps` lies between these fractions, counted as diffusers' guiders do."""
    first_step, end_step = _interval_steps(interval, steps)
    return first_step <= step < end_step


def find_guidance_borders(recipe: Recipe) -> tuple[int, ...]:
    """Return the steps at which guidance begins and ends, but for the first and the end of all steps."""
    if recipe.guidance_kind == "network":
        return ()
    return tuple(step for step in _interval_steps(recipe.guidance_interval, recipe.steps) if 0 < step < recipe.steps)


def _interval_steps(interval: tuple[float, float], steps: int) -> tuple[int, int]:
    return int(interval[0] * steps), int(interval[1] * steps)


def needs_unconditional_row(recipe: Recipe, is_guidance_on: bool = True) -> bool:
    """Return whether the empty or negative text u needs a row.

    The prediction u + guidance·Σ wᵢ(cᵢ - u) lacks u where guidance·Σ wᵢ = 1. Where guidance is off, its scale is
    1/Σ wᵢ, so that u cancels. If a concept has a weight of 0 or less, the scale is 1 and u stays: a sum near 0 would
    blow everything up.
    """
    if recipe.guidance_kind == "network":
        return False
    if not is_guidance_on:
        return has_negative_weight(recipe)
    return recipe.guidance * (1.0 if recipe.mixed else sum(concept.weight for concept in recipe.concepts)) != 1.0


def has_negative_weight(recipe: Recipe) -> bool:
    """Return whether a concept has a weight of 0 or less."""
    return any(concept.weight <= 0.0 for concept in recipe.concepts)


def count_rows(recipe: Recipe, is_guidance_on: bool = True) -> int:
    """Return network rows a step of all images."""
    return recipe.drawn_count * count_image_rows(recipe, is_guidance_on)


def count_image_rows(recipe: Recipe, is_guidance_on: bool = True) -> int:
    """Return an image's rows a step: one for each concept, plus the empty or negative text unless it cancels."""
    return (1 if recipe.mixed else len(recipe.concepts)) + needs_unconditional_row(recipe, is_guidance_on)


def pinned_bucket(recipe: Recipe, is_guidance_on: bool = True) -> int | None:
    """Return the pinned batch shape; without guidance it shrinks with the rows of an image."""
    return recipe.bucket and max(1, recipe.bucket * count_rows(recipe, is_guidance_on) // count_rows(recipe))
