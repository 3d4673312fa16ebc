"""Evaluations: at which steps of a recipe the network is evaluated. Between two of them a step is arithmetic. Pure.

`engine.plan.composition` has that arithmetic. Bot and engine decide by the functions here alike.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from engine.contract.guidance import find_guidance_borders
from engine.contract.recipe import Recipe
from engine.contract.samplers import Sampler

MIN_EVALUATIONS, DRAFT_EVALUATIONS = 5, 25
# DDPM's evaluations, measured on the embedded model (decision 78): more where guidance holds, since x0 moves faster
# there, and more toward the end, where what an estimate misses is not made up for any more.
GUIDED_DENSITY, FIRST_DENSITY = 1.6, 0.15


def count_usual_evaluations(sampler: Sampler, steps: int) -> int:
    """Return at how many steps the network is evaluated unless somebody says otherwise; 0: at all."""
    return 100 if sampler == "ddpm" and steps >= 500 else 0


def list_evaluated_steps(recipe: Recipe) -> Sequence[int]:
    """Return the steps of the whole chain at which the network is evaluated, in order.

    Always among them are the first and the last step, those that the recipe begins and ends at, and those at which
    guidance begins or ends. Guidance counts as the recipe has it at first: an amendment moves no evaluation.
    """
    if not has_skipped_steps(recipe):
        return range(recipe.steps)
    bounds = recipe.first_step, recipe.end_step
    return _list_steps(recipe.sampler, recipe.steps, recipe.evaluations, bounds, find_guidance_borders(recipe))


def has_skipped_steps(recipe: Recipe) -> bool:
    """Return whether the network is evaluated at some steps only."""
    return 0 < recipe.evaluations < recipe.steps


def is_draft(recipe: Recipe) -> bool:
    """Return whether it has so few evaluations that somebody may want to finish it."""
    return has_skipped_steps(recipe) and recipe.evaluations <= DRAFT_EVALUATIONS


def find_next_evaluation(recipe: Recipe, step: int) -> int:
    """Return the first step after `step` at which the network is evaluated; the number of steps if there is none."""
    steps = list_evaluated_steps(recipe)
    position = bisect_right(steps, step)
    return steps[position] if position < len(steps) else recipe.steps


def count_evaluations(recipe: Recipe, first_step: int | None = None, end_step: int | None = None) -> int:
    """Return how often the network is evaluated from one step to before another; by default while the recipe runs."""
    first_step = recipe.first_step if first_step is None else first_step
    end_step = recipe.end_step if end_step is None else end_step
    steps = list_evaluated_steps(recipe)
    return max(0, bisect_left(steps, end_step) - bisect_left(steps, first_step))


def find_done_share(recipe: Recipe, step: int) -> float:
    """Return the share of a recipe's evaluations that come before a step."""
    total = count_evaluations(recipe)
    return min(1.0, count_evaluations(recipe, end_step=step) / total) if total else 1.0


@lru_cache(maxsize=256)
def _list_steps(
    sampler: Sampler, steps: int, count: int, bounds: tuple[int, int], borders: tuple[int, ...]
) -> tuple[int, ...]:
    spread = list(_spread(list(_list_densities(sampler, steps, borders)), count))
    for border in borders:
        inner = [step for step in spread[1:-1] if step not in borders]
        if border not in spread and inner:
            spread.remove(min(inner, key=lambda step: abs(step - border)))
        spread = sorted({*spread, border})
    first_step, end_step = bounds
    return tuple(sorted({*spread, first_step, end_step - 1, *({end_step} - {steps})}))


def _list_densities(sampler: Sampler, steps: int, borders: tuple[int, ...]) -> Iterator[float]:
    """Yield how densely the evaluations lie at each step, on any scale."""
    for step in range(steps):
        if sampler != "ddpm":
            yield 1.0
            continue
        share = step / (steps - 1)
        is_guided = len(borders) == 2 and borders[0] <= step < borders[1]
        yield (FIRST_DENSITY + share**2 * share**2) * (GUIDED_DENSITY if is_guided else 1.0)


def _spread(densities: Sequence[float], count: int) -> Iterator[int]:
    """Yield `count` steps, the first and the last among them, that lie as densely as this says."""
    *starts, total = accumulate(densities, initial=0.0)
    last = -1
    for number in range(count - 1):
        nearest = bisect_left(starts, total * number / (count - 1))
        last = min(max(last + 1, nearest), len(starts) - count + number)  # as many steps must remain as are missing
        yield last
    yield len(starts) - 1
