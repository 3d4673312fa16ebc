"""Models that edit pictures by words: their latents are further tokens of the network, beside those that become the new
picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image

from engine.contract import MAX_INIT_IMAGES, Recipe
from engine.models.family import Conditioning
from engine.models.picture_edits import EditedPicture, EditedPictures, fit_edited_size

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
