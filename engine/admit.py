"""Turns a job into its images (`Trajectory` or `Whole`), or raises `Unfit` with one sentence that says why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from engine.beginning import Beginning
from engine.blame import unforeseen
from engine.families.family import Family, HeldOnce, TakesLoras
from engine.job import ALL_ALONG, Branch, Job, Recipe, Snapshot, Task, Warm, of_image
from engine.plan import NotTabled, Plan
from engine.strands.arguments import refuse_what_no_pipeline_does
from engine.trajectory import Trajectory
from engine.unfit import Unfit
from engine.whole import Source, Whole

log = logging.getLogger(__name__)


def admit(
    job: Job, families: Mapping[str, Family], snapshots: Sequence[Snapshot] = (),
    prices: Mapping[str, float] = MappingProxyType({}), beginning: Beginning | None = None,
    times: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
) -> Sequence[Trajectory] | Sequence[Whole]:  # fmt: skip
    """Return one image per picture of the job, text encoded, at its first step or restored from its snapshot.

    If the sampler has no table, the images run whole through the model's own pipeline, from the start. `prices`:
    milliseconds a row-step at the native size, by model name; 1 for unknown models. `beginning`: what replaces the
    initial noise (`beginning.read`). `times`: milliseconds of a forward by rows, by model name. Raises `Unfit`; raises
    `DeviceLost` if the device no longer computes.
    """
    recipe, family = _checked(job, families)
    price = prices.get(recipe.model, 1.0) * recipe.width * recipe.height / family.size**2
    try:
        images = _images(job, recipe, family, beginning)
    except Unfit:
        raise
    except Exception as error:
        raise unforeseen(error, family.device) from error
    for image in images:
        image.price = price
        if image.bucket is None:  # a pinned forward costs its whole bucket, padding included
            image.times = times.get(recipe.model, {})
        if isinstance(image, Trajectory):
            _restore(image, snapshots)
    return images


def _images(
    job: Job, recipe: Recipe, family: Family, beginning: Beginning | None
) -> Sequence[Trajectory] | Sequence[Whole]:
    """Return the images with their conditioning; this loads the recipe's LoRAs."""
    if recipe.loras:
        recipe = _with_loras(recipe, family)
    table = _plan(recipe, family)
    if table is None:
        return _wholes(job, recipe, family)
    table = _begun(table, recipe, beginning)
    return [Trajectory(job, recipe, image, table, family, beginning) for image in range(recipe.count)]


def _begun(table: Plan, recipe: Recipe, beginning: Beginning | None) -> Plan:
    """Return the plan from the recipe's first step on.

    A branch continues the noise count and the history of its keyframe, unless the number of steps changed.
    """
    start = recipe.start
    if start is not None and beginning is None:
        raise Unfit("The init image or keyframe of this picture did not reach the engine.", "us")
    if beginning is None or not isinstance(start, Branch):
        return table.begun(recipe.first)
    needed = start.fresh or start.rung is not None or table.keeps_history
    if needed and beginning.estimate is None:
        raise Unfit("An earlier version stored these keyframes, and kept too little for such a branch.", "member")
    table = table if start.rung is None else table.alone(start.step)
    return table if beginning.drawn is None else table.drawn(start.step, beginning.drawn)


def check(job: Job, families: Mapping[str, Family]) -> None:
    """Raise `Unfit` where `admit` would, as far as that shows before images and text are encoded. On any thread."""
    recipe, family = _checked(job, families)
    if _plan(recipe, family) is None:
        refuse_what_no_pipeline_does(recipe)


def elsewhere(task: Task, offered: Sequence[Warm]) -> str:
    """Return why a worker that offers these models cannot take the task, as one sentence; empty if it may.

    Every worker can upscale, whatever its models. If no models are known, `admit` finds out.
    """
    if not isinstance(task, Recipe) or not offered:
        return ""
    return _not_here(task, {warm.name: warm.revision for warm in offered}.get(task.model))


def prepare(job: Job, families: Mapping[str, Family]) -> None:
    """Find the sampler's table, which takes up to a second, so that `admit` does not delay other jobs. On any thread.

    A large model that is in memory in another number format is loaded again in the recipe's.
    """
    recipe = job.task
    if isinstance(recipe, Recipe) and (family := families.get(recipe.model)) is not None:
        with suppress(ValueError, Unfit):  # `admit` reports it
            if isinstance(family, HeldOnce) and family.held_once:
                family.net(recipe.dtype)
            family.plan(recipe.sampler, recipe.steps, recipe.eta, recipe.width, recipe.height)


def _checked(job: Job, families: Mapping[str, Family]) -> tuple[Recipe, Family]:
    if not isinstance(job.task, Recipe):
        raise Unfit("This job has no recipe for a picture.", "us")
    family = _family(job.task, families)
    _check_size(job.task, family)
    _check_course(job.task)
    return job.task, family


def _check_course(recipe: Recipe) -> None:
    first, last = recipe.first, recipe.last
    if first >= last:
        raise Unfit(f"The picture would end after step {last}, but begin after step {first}.", "member")
    if recipe.mixed and any(concept.weight <= 0 for concept in recipe.concepts):
        raise Unfit("Every concept of a mixed prompt needs a weight above 0.", "member")
    walk = recipe.walk
    if walk is None:
        return
    if (walk.to is not None and len(recipe.concepts) > 1) or walk.first + recipe.count > walk.of:
        raise Unfit("A walk goes from one text to another, and not beyond its end.", "us")
    if walk.noises and recipe.lineage:
        raise Unfit("A walk between noises begins with no variation.", "us")


def _restore(image: Trajectory, snapshots: Sequence[Snapshot]) -> None:
    for snapshot in snapshots:
        if snapshot.image == image.image:
            try:
                image.restore(snapshot)
            except ValueError as error:
                log.warning("job %s image %d starts over: %s", image.job, image.image, error)


def _family(recipe: Recipe, families: Mapping[str, Family]) -> Family:
    family = families.get(recipe.model)
    why = _not_here(recipe, None if family is None else family.revision)
    if family is None or why:
        raise Unfit(why, "worker")
    if recipe.guides != family.guides:
        raise Unfit(f"{family.name} takes guidance in another way than this recipe says.", "us")
    if recipe.guidance_start > recipe.guidance_stop:
        raise Unfit("Guidance cannot stop before it starts.", "member")
    if recipe.guides == "network" and recipe.interval != ALL_ALONG:
        raise Unfit(f"{family.name} has guidance built into its network, so it holds at every step.", "member")
    return family


def _not_here(recipe: Recipe, revision: str | None) -> str:
    """Return why this worker cannot run the recipe's model. `revision` is the worker's; None if it lacks the model."""
    if revision is None:
        return f"This worker has no model called {recipe.model}."
    if recipe.revision and recipe.revision != revision:
        return f"This worker has another version of {recipe.model} than the recipe names."
    return ""


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
    """Return the plan; None if the sampler has no table but the model's own pipeline can run it."""
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
        return [Whole(job, of_image(recipe, image), image, family) for image in range(recipe.count)]
    except ValueError as error:
        raise _cannot_take(recipe, family, error) from error


def _cannot_take(recipe: Recipe, family: Family, error: ValueError) -> Unfit:
    log.info("%s, %s, %d steps: %s", family.name, recipe.sampler, recipe.steps, error)
    what = f"{recipe.steps} steps with the sampler {recipe.sampler}"
    return Unfit(f"{family.name} cannot take {what}; fewer steps or another may work.", "model")
