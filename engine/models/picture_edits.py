"""A picture that a model edits by words: it is a condition beside the prompt, and the new picture starts from noise."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image

from engine.contract import ImageToImage, Recipe, is_whole_picture
from engine.models.family import Conditioning, Family


class EditedPicture(NamedTuple):
    """A picture that is edited by words, at the size of `fit_edited_size`, and its latents there."""

    image: Image.Image
    latents: torch.Tensor  # [channels, height, width]


@runtime_checkable
class EditsPictures(Protocol):
    """A family that edits a picture by words. `needs_picture`: it cannot draw without one."""

    needs_picture: bool

    def encode_edit(self, text: str, recipe: Recipe, picture: EditedPicture, *, negative: bool = False) -> Conditioning:
        """Encode one text of a recipe and the picture, as `Family.encode_conditioning` encodes a text."""
        ...


def is_edit(recipe: Recipe, family: Family) -> bool:
    """Whether the recipe edits its init image by words, rather than starts from it.

    A model that can do both edits at full strength, where nothing of the start would remain.
    """
    start = recipe.start
    if not isinstance(family, EditsPictures) or not isinstance(start, ImageToImage):
        return False
    return family.needs_picture or is_whole_picture(start)


def fit_edited_size(recipe: Recipe, family: Family) -> tuple[int, int]:
    """Return the size in pixels of a picture that is edited: the recipe's, scaled down to the native area."""
    scale = min(1.0, family.size / math.sqrt(recipe.width * recipe.height))
    width, height = (
        max(family.multiple, int(side * scale / family.multiple) * family.multiple)
        for side in (recipe.width, recipe.height)
    )
    return width, height
