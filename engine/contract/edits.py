"""Which recipes edit a picture by words, as bot and costs tell them from recipes that start from a picture. Pure."""

from __future__ import annotations

from engine.contract.presence import ModelProfile
from engine.contract.recipe import ImageToImage, Recipe


def has_whole_pictures(start: ImageToImage) -> bool:
    """Return whether it is at full strength without a mask: nothing of its pictures would remain as a start."""
    return start.strength == 1.0 and start.mask is None


def is_edit(recipe: Recipe, model: ModelProfile) -> bool:
    """Return whether this model edits the recipe's init images by words, rather than starts from them."""
    start = recipe.start
    if not model.edits or not isinstance(start, ImageToImage):
        return False
    is_possible = has_whole_pictures(start) and len(start.pictures) <= model.max_edit_pictures
    return model.required == "picture" or is_possible
