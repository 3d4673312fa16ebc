"""Derived recipes: variation, reroll, remix, interpolation, upscale, and the pinned batch of exact mode. Pure."""

from __future__ import annotations

import msgspec

from bot.prompt import Request
from bot.prompt.concepts import balanced
from bot.prompt.loras import matched
from bot.prompt.possible import check_possible, check_sampler, interval
from bot.prompt.request import course, fit
from bot.refused import Refused
from engine.job import MAX_COUNT, WHOLE_SAMPLERS, Ancestor, Enlarge, Method, Recipe, Walk, Warm, of_image, rows

ANCESTORS = 8
STATIONS = 13  # frames of an interpolation through two, three or four pictures: each picture is one of them
MAX_SIDE = 4096
SEEDS = 2**32
LARGEST_BUCKET = 32
FACTORS = (4, 3, 2)
LANCZOS_SECONDS = 0.05  # a megapixel of the enlarged picture; the transfer costs one megapixel more
RESOLVING_MS = 14_000.0  # a megapixel of the source by the built-in super-resolver, as measured on one slow core


def varied(recipe: Recipe, index: int, strength: float, seed: int) -> Recipe:
    """Return a variation of image `index`: its noise stream joins the lineage, and a fresh seed leads away from it.

    The lineage keeps eight ancestors. A ninth generation drops the oldest: its noise then starts from the second-oldest
    stream, so it resembles its parent less than `strength` says, by the drift of one step. Raises `Refused` if the
    sampler cannot make variations.
    """
    recipe, index = (resting(recipe, index), 0) if recipe.walk else (recipe, index)
    ancestor = Ancestor(seed=recipe.seed, index=index, strength=strength)
    lineage = (*recipe.lineage, ancestor)[-ANCESTORS:]
    made = msgspec.structs.replace(recipe, seed=seed, lineage=lineage)
    check_sampler(made)
    return made


def resting(recipe: Recipe, index: int) -> Recipe:
    """Return the recipe without its interpolation: all of its images use the conditioning of image `index`."""
    return msgspec.structs.replace(of_image(recipe, index), walk=None) if recipe.walk else recipe


def station(recipe: Recipe, index: int) -> Recipe:
    """Return image `index` of an interpolation alone, with its own noise; any other recipe unchanged."""
    return msgspec.structs.replace(resting(recipe, index), count=1) if recipe.walk else recipe


def stations(recipe: Recipe, to: str, frames: int) -> list[Recipe]:
    """Return the recipes of an interpolation of `frames` pictures from the recipe's prompt to another."""
    return [
        msgspec.structs.replace(
            recipe, walk=Walk(to, first, frames), count=min(MAX_COUNT, frames - first), chaos=0.0, mixed=False
        )
        for first in range(0, frames, MAX_COUNT)
    ]  # fmt: skip


def walkable(recipe: Recipe) -> bool:
    """Return whether its pictures can be interpolated: several that differ in noise only, and no variations."""
    alike = recipe.walk is None and not recipe.lineage and not recipe.chaos
    return alike and recipe.count > 1 and recipe.sampler not in WHOLE_SAMPLERS and not beyond_seeds(recipe)


def beyond_seeds(recipe: Recipe) -> bool:
    """Return whether one of its pictures has noise without a valid seed: image `i` draws from `seed + i`."""
    return recipe.seed + recipe.count > SEEDS


def between(recipe: Recipe) -> list[Recipe]:
    """Return the recipes of an interpolation through all pictures of a recipe."""
    noises = tuple(recipe.seed + image for image in range(recipe.count))
    parts = ((first, min(MAX_COUNT, STATIONS - first)) for first in range(0, STATIONS, MAX_COUNT))
    return [
        msgspec.structs.replace(recipe, walk=Walk(None, first, STATIONS, noises), count=count) for first, count in parts
    ]


def rerolled(recipe: Recipe, seed: int) -> Recipe:
    """Return the same recipe with other noise."""
    walk = recipe.walk
    if walk is not None:
        walk = msgspec.structs.replace(walk, noises=tuple(seed + place for place in range(len(walk.noises))))
    return msgspec.structs.replace(recipe, seed=seed, walk=walk)


def remixed(recipe: Recipe, request: Request, warm: Warm) -> Recipe:
    """Return the recipe with another prompt and the same noise; flags change further settings.

    Raises `Refused` if the shape does not fit the model, if the model lacks a feature, or if another model is
    requested: its noise is not comparable.
    """
    if request.walk:
        raise Refused("A walk begins with a prompt of its own: ask for it anew.")
    if request.model not in (None, recipe.model):
        raise Refused(f"A remix keeps its model, {recipe.model}: ask for another one by a new prompt.")
    width, height = fit(request.ar, warm) if request.ar else (recipe.width, recipe.height)
    sampler, steps = course(request, msgspec.structs.replace(warm, sampler=recipe.sampler, steps=recipe.steps))
    held = interval(request.interval, (recipe.guidance_start, recipe.guidance_stop), sampler, warm)
    made = msgspec.structs.replace(
        recipe,
        concepts=balanced(request.concepts),
        negative=request.negative,
        sampler=sampler,
        steps=steps,
        seed=recipe.seed if request.seed is None else request.seed,
        guidance=recipe.guidance if request.guidance is None else request.guidance,
        count=request.count or recipe.count,
        width=width,
        height=height,
        guidance_start=held[0],
        guidance_stop=held[1],
        walk=None,
        mixed=recipe.mixed or (request.mixed and len(request.concepts) > 1),
        loras=recipe.loras if request.loras is None else matched(request.loras, warm),
    )
    check_possible(made, warm)
    return pinned(made) if made.bucket else made


def pinned(recipe: Recipe) -> Recipe:
    """Return the recipe in exact mode: its batch shape is the power of two that holds its rows, whatever else runs.

    Above 32 rows it takes several forwards of 32, so that it also fits where a larger batch would not.
    """
    return msgspec.structs.replace(recipe, bucket=min(LARGEST_BUCKET, 1 << (rows(recipe) - 1).bit_length()))


def enlarged(sha256: str, width: int, height: int, method: Method = "gan") -> Enlarge:
    """Return the largest upscale that fits. Raises `Refused` if none does."""
    for factor in FACTORS:
        if max(width, height) * factor <= MAX_SIDE:
            return Enlarge(source=sha256, factor=factor, method=method)
    raise Refused(f"At {width} × {height} pixels this picture is as large as it gets.")


def enlarging_notes(task: Enlarge, width: int, height: int) -> tuple[str, ...]:
    """Return a note if the default factor would be too large."""
    if task.factor == FACTORS[0]:
        return ()
    largest = FACTORS[0] * max(width, height)
    return (f"×{FACTORS[0]} would be {largest} pixels a side, and at most {MAX_SIDE} fit: it becomes ×{task.factor}.",)


def enlarging_cost(task: Enlarge, width: int, height: int, ms: float = RESOLVING_MS) -> float:
    """Return the estimated device-seconds of an upscale. `ms`: the super-resolver's time a megapixel of the source."""
    megapixels = width * height / 1e6
    resolving = ms * megapixels / 1000 if task.method == "gan" else 0.0
    return resolving + LANCZOS_SECONDS * (1.0 + megapixels * task.factor**2)
