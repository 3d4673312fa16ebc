"""What the engine agrees to run: a job becomes its trajectories, or `Unfit` says in one sentence why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from engine.families.family import Family
from engine.job import Job, Recipe
from engine.plan import Plan
from engine.trajectory import Trajectory
from engine.unfit import Unfit

log = logging.getLogger(__name__)


def admit(job: Job, families: Mapping[str, Family]) -> list[Trajectory]:
    """One trajectory an image, at its first step, its text encoded. Raises `Unfit`."""
    if not isinstance(job.task, Recipe):
        raise Unfit("This job is not a picture to be developed.", "us")
    recipe = job.task
    family = _family(recipe, families)
    _check_size(recipe, family)
    table = _plan(recipe, family)
    return [Trajectory(job, recipe, image, table, family) for image in range(recipe.count)]


def _family(recipe: Recipe, families: Mapping[str, Family]) -> Family:
    family = families.get(recipe.model)
    if family is None:
        raise Unfit(f"This worker has no model called {recipe.model}.", "worker")
    if recipe.revision and recipe.revision != family.revision:
        raise Unfit(f"This worker has another version of {recipe.model} than the picture asks for.", "worker")
    if recipe.guides != family.guides:
        raise Unfit(f"{family.name} takes its guidance in another way than the picture was asked for with.", "us")
    return family


def _check_size(recipe: Recipe, family: Family) -> None:
    if recipe.width % family.multiple or recipe.height % family.multiple:
        raise Unfit(f"With {family.name}, width and height must be multiples of {family.multiple}.", "member")
    if recipe.width * recipe.height > family.max_pixels:
        most = int(family.max_pixels**0.5)
        raise Unfit(
            f"{recipe.width}×{recipe.height} is too large for {family.name}: at most {most}×{most} pixels.", "member"
        )


def _plan(recipe: Recipe, family: Family) -> Plan:
    try:
        return family.plan(recipe.sampler, recipe.steps, recipe.eta, recipe.width, recipe.height)
    except ValueError as error:
        log.info("%s, %s, %d steps: %s", family.name, recipe.sampler, recipe.steps, error)
        what = f"{recipe.steps} steps with the sampler {recipe.sampler}"
        raise Unfit(f"{family.name} cannot take {what}; fewer steps or another may work.", "model") from error
