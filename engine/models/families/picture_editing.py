"""Models that edit pictures by words: their latents are further tokens of the network, beside those that become the new
picture.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image

from engine.contract import MAX_INIT_IMAGES, ImageToImage, Recipe
from engine.models.family import Conditioning, Family

if TYPE_CHECKING:
    from engine.models.families.diffusers_family import DiffusersFamily
else:
    DiffusersFamily = object


class PictureEditing(DiffusersFamily):
    """Mixin of a family, its first base: the pictures' latents `[channels, height, width]` are the last conditions."""

    needs_picture = False
    max_edit_pictures = MAX_INIT_IMAGES

    def encode_edit(
        self, text: str, recipe: Recipe, pictures: EditedPictures, *, negative: bool = False
    ) -> Conditioning:
        """Encode one text of a recipe and the pictures, like `encode_conditioning`."""
        texts = super().encode_conditioning(text, recipe, negative=negative)
        return (*texts, *(picture.latents for picture in pictures))


class NeedsPicture(PictureEditing):
    """Mixin of a family that draws nothing without a picture. Tests and timings, which have none, get a blank one."""

    needs_picture = True
    required: Literal["", "mask", "picture"] = "picture"

    def encode_conditioning(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditioning:
        return self.encode_edit(text, recipe, (self._make_blank_picture(recipe),), negative=negative)

    def _make_blank_picture(self, recipe: Recipe) -> EditedPicture:
        size = fit_edited_size(recipe, self)
        latents = torch.zeros(self.latent_shape(*size), device=self.device)
        return EditedPicture(Image.new("RGB", size, (128, 128, 128)), latents)


def split_pictures(conditioning: Conditioning) -> tuple[Conditioning, tuple[torch.Tensor, ...]]:
    """Return the other conditions, and the latents `[rows, channels, height, width]` of each picture."""
    count = sum(part.dim() == 4 for part in conditioning)
    split = len(conditioning) - count
    return conditioning[:split], conditioning[split:]


MAX_RATIO = 4.0  # of the longer side of a further picture to its shorter one; the rest is cut off


class EditedPicture(NamedTuple):
    """A picture that is edited by words, at the size of `fit_edited_size`, and its latents there."""

    image: Image.Image
    latents: torch.Tensor  # [channels, height, width]


EditedPictures = tuple[EditedPicture, ...]  # in the recipe's order; empty where nothing is edited


@runtime_checkable
class EditsPictures(Protocol):
    """A family that edits pictures by words. `needs_picture`: it cannot draw without one.

    `max_edit_pictures`: how many one edit sees.
    """

    needs_picture: bool
    max_edit_pictures: int

    def encode_edit(
        self, text: str, recipe: Recipe, pictures: EditedPictures, *, negative: bool = False
    ) -> Conditioning:
        """Encode one text of a recipe and the pictures, as `Family.encode_conditioning` encodes a text."""
        ...


def is_edit(recipe: Recipe, family: Family) -> bool:
    """Whether the recipe edits its init images by words, rather than starts from them.

    A model that can do both edits at full strength, where nothing of the start would remain.
    """
    start = recipe.start
    if not isinstance(family, EditsPictures) or not isinstance(start, ImageToImage):
        return False
    return family.needs_picture or (start.has_whole_pictures and len(start.pictures) <= family.max_edit_pictures)


def fit_edited_size(recipe: Recipe, family: Family, shape: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the size in pixels of a picture that is edited: the recipe's, scaled down to the native area.

    `shape`: width and height of a further picture. It keeps that shape, at the same area.
    """
    area = min(family.size**2, recipe.width * recipe.height)
    width, height = shape or (recipe.width, recipe.height)
    if shape is not None:
        width, height = min(width, MAX_RATIO * height), min(height, MAX_RATIO * width)
    scale = math.sqrt(area / (width * height))
    fitted_width, fitted_height = (
        max(family.multiple, int(side * scale / family.multiple) * family.multiple) for side in (width, height)
    )
    return fitted_width, fitted_height
