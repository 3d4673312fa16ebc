"""Which recipes edit a picture by words, as bot and costs tell them from recipes that start from a picture. Pure."""

from __future__ import annotations

from engine.contract.presence import ModelProfile
from engine.contract.recipe import ImageToImage, Recipe


def is_edit(recipe: Recipe, model: ModelProfile) -> bool:
    """Return whether this model edits the recipe's init images by words, rather than starts from them."""
    start = recipe.start
    if not model.edits or not isinstance(start, ImageToImage):
        return False
    is_possible = start.has_whole_pictures and len(start.pictures) <= model.max_edit_pictures
    return model.required == "picture" or is_possible
