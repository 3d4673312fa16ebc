"""The steps at which a recipe's network is evaluated, those of them that are guided, and their network rows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from engine.contract.fields import PIPELINE_SAMPLERS, Sampler
from engine.contract.recipe import ImageToImage, Recipe

MIN_EVALUATIONS = 5
DRAFT_EVALUATIONS = 25
USUAL_EVALUATIONS = 100
# How densely DDPM's evaluations lie, as measured on the embedded model (decision 78). Where guidance begins midway, x0
# moves at first nine times as fast as later. Before that, a small error may lead to another drawing. Toward the end,
# nothing makes up for an error any more.
EARLY_DENSITY = 1.6
ONSET_DENSITY = 8.0
ONSET_SHARE = 0.06
LEAST_DENSITY = 0.3


def count_usual_evaluations(sampler: Sampler, steps: int) -> int:
    """Return at how many steps the network is evaluated unless somebody says otherwise; 0: at all."""
    return USUAL_EVALUATIONS if sampler not in PIPELINE_SAMPLERS and steps > USUAL_EVALUATIONS else 0


def list_evaluated_steps(recipe: Recipe) -> Sequence[int]:
    """Return the steps of the whole chain at which the network is evaluated, in order.

    Always among them are the first and the last step, those that the recipe begins and ends at, and its borders
    (`find_borders`). Guidance counts as the recipe has it at first: an amendment moves no evaluation.
    """
    if not has_skipped_steps(recipe):
        return range(recipe.steps)
    guided_steps = find_guided_steps(recipe, 0, recipe.steps)
    needed_steps = (*find_borders(recipe), recipe.first_step, recipe.end_step - 1, recipe.end_step)
    return _list_steps(recipe.sampler, recipe.steps, recipe.evaluations, guided_steps, needed_steps)


def find_borders(recipe: Recipe) -> tuple[int, ...]:
    """Return the steps from which on the network is asked for something else: guidance or a control begins or ends."""
    first_step = recipe.first_step if isinstance(recipe.start, ImageToImage) else 0
    count = recipe.steps - first_step  # controls count from an init image on, as diffusers' pipelines do
    begins = (bisect_left(range(count), each.start, key=lambda step: step / count) for each in recipe.controls)
    ends = (bisect_right(range(count), each.stop, key=lambda step: (step + 1) / count) for each in recipe.controls)
    control_borders = (first_step + step for step in (*begins, *ends) if 0 < step < count)
    return tuple(sorted({*find_guidance_borders(recipe), *control_borders}))


def has_skipped_steps(recipe: Recipe) -> bool:
    """Return whether the network is evaluated at some steps only."""
    return 0 < recipe.evaluations < recipe.steps


def count_requested_evaluations(recipe: Recipe) -> int:
    """Return at how many steps the network is evaluated, as the recipe's flag says it: all, where none is skipped."""
    return recipe.evaluations or recipe.steps


def is_draft(recipe: Recipe) -> bool:
    """Return whether it has so few evaluations that somebody may want to finish it."""
    return has_skipped_steps(recipe) and recipe.evaluations <= DRAFT_EVALUATIONS


def find_next_evaluation(recipe: Recipe, step: int) -> int:
    """Return the first step after `step` at which the network is evaluated; the number of steps if there is none."""
    steps = list_evaluated_steps(recipe)
    position = bisect_right(steps, step)
    return steps[position] if position < len(steps) else recipe.steps


def find_last_evaluation(recipe: Recipe, step: int) -> int:
    """Return the last step before `step` at which the network is evaluated; -1 if there is none."""
    steps = list_evaluated_steps(recipe)
    position = bisect_left(steps, step)
    return steps[position - 1] if position else -1


def count_evaluations(recipe: Recipe, first_step: int | None = None, end_step: int | None = None) -> int:
    """Return how often the network is evaluated from one step to before another; by default while the recipe runs."""
    first_step = recipe.first_step if first_step is None else first_step
    end_step = recipe.end_step if end_step is None else end_step
    return count_between(list_evaluated_steps(recipe), first_step, end_step)


def count_between(steps: Sequence[int], first_step: int, end_step: int) -> int:
    """Return how many of the evaluated `steps` lie from one step to before another."""
    return max(0, bisect_left(steps, end_step) - bisect_left(steps, first_step))


def find_done_share(recipe: Recipe, step: int) -> float:
    """Return the share of a recipe's evaluations that come before a step."""
    total = count_evaluations(recipe)
    return min(1.0, count_evaluations(recipe, end_step=step) / total) if total else 1.0


@lru_cache(maxsize=256)
def _list_steps(
    sampler: Sampler, steps: int, count: int, guided_steps: tuple[int, int], needed_steps: tuple[int, ...]
) -> tuple[int, ...]:
    """Return `count` steps, and perhaps some of `needed_steps` besides; else the nearest steps give way to these."""
    densities = [_find_density(sampler, step, steps, guided_steps) for step in range(steps)]
    chosen = {*_spread(densities, count)}
    needed = {0, steps - 1, *(step for step in needed_steps if step < steps)}
    for step in sorted(needed - chosen):
        if others := chosen - needed:
            chosen.remove(min(others, key=lambda other: (abs(other - step), other)))
        chosen.add(step)
    return tuple(sorted(chosen))


def _find_density(sampler: Sampler, step: int, steps: int, guided_steps: tuple[int, int]) -> float:
    """Return how densely the evaluations lie at a step, on any scale. Samplers but DDPM have them evenly."""
    if sampler != "ddpm":
        return 1.0
    first_guided_step, end_of_guidance = guided_steps
    share = step / steps
    density = LEAST_DENSITY + share * share * share * share
    if step < first_guided_step:
        return density * EARLY_DENSITY
    if step >= end_of_guidance or first_guided_step == 0:
        return density
    return density * (1.0 + ONSET_DENSITY / (1.0 + (step - first_guided_step) / (ONSET_SHARE * steps)) ** 2)


def _spread(densities: Sequence[float], count: int) -> Iterator[int]:
    """Yield `count` steps, the first and the last among them, that lie as densely as this says."""
    *starts, total = accumulate(densities, initial=0.0)
    last = -1
    for number in range(count - 1):
        nearest = bisect_left(starts, total * number / (count - 1))
        last = min(max(last + 1, nearest), len(starts) - count + number)  # as many steps must remain as are missing
        yield last
    yield len(starts) - 1


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
