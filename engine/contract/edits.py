"""Which recipes edit a picture by words, as bot and costs tell them from recipes that start from a picture. Pure."""

from __future__ import annotations

from engine.contract.presence import ModelProfile
from engine.contract.recipe import ImageToImage, Recipe


def is_whole_picture(start: ImageToImage) -> bool:
    """Return whether it is one picture at full strength without a mask: nothing of it would remain as a start."""
    return start.strength == 1.0 and start.mask is None and len(start.pictures) == 1


def is_edit(recipe: Recipe, model: ModelProfile) -> bool:
    """Return whether this model edits the recipe's init image by words, rather than starts from it."""
    start = recipe.start
    if not model.edits or not isinstance(start, ImageToImage):
        return False
    return model.required == "picture" or is_whole_picture(start)
