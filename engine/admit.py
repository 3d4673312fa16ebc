"""What the engine agrees to run: a job becomes its trajectories, or `Unfit` says in one sentence why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from engine.blame import unforeseen
from engine.families.family import Family, TakesLoras
from engine.job import ALL_ALONG, Job, Recipe, Snapshot
from engine.plan import NotTabled, Plan
from engine.strands.arguments import refuse_what_no_pipeline_does
from engine.trajectory import Trajectory
from engine.unfit import Unfit
from engine.whole import Source, Whole

log = logging.getLogger(__name__)


def admit(
    job: Job, families: Mapping[str, Family], snapshots: Sequence[Snapshot] = (),
    prices: Mapping[str, float] = MappingProxyType({}),
) -> Sequence[Trajectory] | Sequence[Whole]:  # fmt: skip
    """One trajectory an image, its text encoded, at its first step or where its snapshot stands. Raises `Unfit`,
    and `DeviceLost` where nothing can be computed any more.

    Where there is no table for the sampler, images go whole through the model's own pipeline, from the start.
    `prices`: milliseconds a row-step at the native size, by the model's name; of others it is 1.
    """
    if not isinstance(job.task, Recipe):
        raise Unfit("This job is not a picture to be developed.", "us")
    recipe = job.task
    family = _family(recipe, families)
    _check_size(recipe, family)
    price = prices.get(recipe.model, 1.0) * recipe.width * recipe.height / family.size**2
    try:
        images = _images(job, recipe, family)
    except Unfit:
        raise
    except Exception as error:
        raise unforeseen(error, family.device) from error
    for image in images:
        image.price = price
        if isinstance(image, Trajectory):
            _restore(image, snapshots)
    return images


def _images(job: Job, recipe: Recipe, family: Family) -> Sequence[Trajectory] | Sequence[Whole]:
    """Their words are read, and their networks are there."""
    if recipe.loras:
        recipe = _with_loras(recipe, family)
    table = _plan(recipe, family)
    if table is None:
        return _wholes(job, recipe, family)
    return [Trajectory(job, recipe, image, table, family) for image in range(recipe.count)]


def prepare(job: Job, families: Mapping[str, Family]) -> None:
    """Finds the sampler's table, up to a second's work, so that `admit` need not while others wait. On any thread."""
    recipe = job.task
    if isinstance(recipe, Recipe) and (family := families.get(recipe.model)) is not None:
        with suppress(ValueError, Unfit):  # `admit` will say so
            family.plan(recipe.sampler, recipe.steps, recipe.eta, recipe.width, recipe.height)


def _restore(image: Trajectory, snapshots: Sequence[Snapshot]) -> None:
    for snapshot in snapshots:
        if snapshot.image == image.image:
            try:
                image.restore(snapshot)
            except ValueError as error:
                log.warning("job %s image %d starts over: %s", image.job, image.image, error)


def _family(recipe: Recipe, families: Mapping[str, Family]) -> Family:
    family = families.get(recipe.model)
    if family is None:
        raise Unfit(f"This worker has no model called {recipe.model}.", "worker")
    if recipe.revision and recipe.revision != family.revision:
        raise Unfit(f"This worker has another version of {recipe.model} than the picture asks for.", "worker")
    if recipe.guides != family.guides:
        raise Unfit(f"{family.name} takes its guidance in another way than the picture was asked for with.", "us")
    if recipe.guidance_start > recipe.guidance_stop:
        raise Unfit("Guidance cannot stop before it starts.", "member")
    if recipe.guides == "network" and recipe.interval != ALL_ALONG:
        raise Unfit(f"{family.name} has guidance built into its network, so it holds at every step.", "member")
    return family


def _with_loras(recipe: Recipe, family: Family) -> Recipe:
    if not isinstance(family, TakesLoras):
        raise Unfit(f"LoRAs cannot be added to {family.name}.", "model")
    return family.with_loras(recipe)


def _check_size(recipe: Recipe, family: Family) -> None:
    if recipe.width % family.multiple or recipe.height % family.multiple:
        raise Unfit(f"With {family.name}, width and height must be multiples of {family.multiple}.", "member")
    if recipe.width * recipe.height > family.max_pixels:
        most = int(family.max_pixels**0.5)
        raise Unfit(
            f"{recipe.width}×{recipe.height} is too large for {family.name}: at most {most}×{most} pixels.", "member"
        )


def _plan(recipe: Recipe, family: Family) -> Plan | None:
    """None where the sampler is no table, and the model's own pipeline can run it."""
    try:
        return family.plan(recipe.sampler, recipe.steps, recipe.eta, recipe.width, recipe.height)
    except NotTabled as why:
        if isinstance(family, Source):
            log.info("%s, %s: whole, by its own pipeline: %s", family.name, recipe.sampler, why)
            return None
        raise _cannot_take(recipe, family, why) from why
    except ValueError as error:
        raise _cannot_take(recipe, family, error) from error


def _wholes(job: Job, recipe: Recipe, family: Family) -> list[Whole]:
    refuse_what_no_pipeline_does(recipe)
    assert isinstance(family, Source), "only such a family's samplers go whole"
    try:
        return [Whole(job, recipe, image, family) for image in range(recipe.count)]
    except ValueError as error:
        raise _cannot_take(recipe, family, error) from error


def _cannot_take(recipe: Recipe, family: Family, error: ValueError) -> Unfit:
    log.info("%s, %s, %d steps: %s", family.name, recipe.sampler, recipe.steps, error)
    what = f"{recipe.steps} steps with the sampler {recipe.sampler}"
    return Unfit(f"{family.name} cannot take {what}; fewer steps or another may work.", "model")
