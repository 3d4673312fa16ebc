"""Models that edit a picture by words: its latents are further tokens of the network, beside those that become the new
picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image

from engine.contract import Recipe
from engine.models.family import Conditioning
from engine.models.picture_edits import EditedPicture, fit_edited_size

if TYPE_CHECKING:
    from engine.models.families.diffusers_family import DiffusersFamily
else:
    DiffusersFamily = object


class PictureEditing(DiffusersFamily):
    """Mixin of a family, its first base: the picture's latents `[channels, height, width]` are the last condition."""

    needs_picture = False

    def encode_edit(self, text: str, recipe: Recipe, picture: EditedPicture, *, negative: bool = False) -> Conditioning:
        """Encode one text of a recipe and the picture, like `encode_conditioning`."""
        return (*super().encode_conditioning(text, recipe, negative=negative), picture.latents)


class NeedsPicture(PictureEditing):
    """Mixin of a family that draws nothing without a picture. Tests and timings, which have none, get a blank one."""

    needs_picture = True
    required: Literal["", "mask", "picture"] = "picture"

    def encode_conditioning(self, text: str, recipe: Recipe, *, negative: bool = False) -> Conditioning:
        return self.encode_edit(text, recipe, self._make_blank_picture(recipe), negative=negative)

    def _make_blank_picture(self, recipe: Recipe) -> EditedPicture:
        size = fit_edited_size(recipe, self)
        latents = torch.zeros(self.latent_shape(*size), device=self.device)
        return EditedPicture(Image.new("RGB", size, (128, 128, 128)), latents)


def split_picture(conditioning: Conditioning) -> tuple[Conditioning, torch.Tensor | None]:
    """Return the other conditions, and the pictures' latents `[rows, channels, height, width]` where there are any."""
    *others, last = conditioning
    return (tuple(others), last) if last.dim() == 4 else (conditioning, None)
