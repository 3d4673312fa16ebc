"""Which features a recipe uses that its model lacks, as bot and worker both decide it. Pure.

A model behind another server's API draws only what that API can say.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.contract.evaluations import has_skipped_steps
from engine.contract.fields import FULL_INTERVAL, Feature
from engine.contract.presence import ModelProfile
from engine.contract.recipe import Branch, ImageToImage, Recipe


def find_lacking_feature(recipe: Recipe, model: ModelProfile) -> Feature | None:
    """Return the first feature that the recipe uses and the model lacks; None: it can draw the recipe."""
    return next((feature for feature in _list_used_features(recipe, model) if feature in model.lacks), None)


def _list_used_features(recipe: Recipe, model: ModelProfile) -> Iterator[Feature]:
    """Yield what the recipe uses. Steps and guidance count where they are not the model's usual ones."""
    used: dict[Feature, bool] = {
        "mix": recipe.mixed,
        "walk": recipe.interpolation is not None,
        "weights": [concept.weight for concept in recipe.concepts] != [1.0],
        "negative": bool(recipe.negative),
        "steps": recipe.steps != model.steps,
        "guidance": recipe.guidance not in (1.0, model.guidance) or recipe.chaos > 0,
        "interval": recipe.guidance_interval != FULL_INTERVAL,
        "variation": bool(recipe.lineage),
        "tile": recipe.tile,
        "stop": recipe.stop_at < 1.0,
        "branch": isinstance(recipe.start, Branch),
        "amendments": bool(recipe.amendments),
        "evaluations": has_skipped_steps(recipe),
    }
    for feature, is_used in used.items():
        if is_used:
            yield feature
    if isinstance(recipe.start, ImageToImage):
        yield from _list_start_features(recipe.start)


def _list_start_features(start: ImageToImage) -> Iterator[Feature]:
    """Yield what the init images use. Beside a mask the strength only says how much of its inside may stay."""
    yield "picture"
    if start.mask is not None:
        yield "mask"
    elif not start.has_whole_pictures:
        yield "strength"
    if len(start.pictures) > 1:
        yield "blend"
