"""`InpaintingConditioner`: a recipe's init image and mask as additional channels of each of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps

from engine.contract import ImageToImage, JobRejected, Recipe
from engine.models.family import with_autoencoder
from engine.models.picture_conditions import (
    Additions,
    ForwardInputs,
    OpenPicture,
    PictureCondition,
    PictureConditioner,
    PictureConditions,
    PictureRows,
    PictureSlot,
    SlotKind,
)

MASK_THRESHOLD = 128  # as in diffusers: lighter parts of a mask are painted anew


class InpaintingConditioner(PictureConditioner):
    """For a family with a U-Net of nine channels."""

    kinds: tuple[SlotKind, ...] = ("inpaint",)

    def __init__(self, family: Any) -> None:
        self._family = family

    def with_family(self, family: Any) -> Self:
        return type(self)(family)

    def needs_pictures(self, recipe: Recipe) -> bool:
        return True

    def check_pictures(self, recipe: Recipe) -> None:
        """Raise `JobRejected` where there is no mask."""
        if not isinstance(recipe.start, ImageToImage) or recipe.start.mask is None:
            name = self._family.name
            raise JobRejected(f"{name} paints inside a mask: it needs a picture to begin with, and a mask.", "member")
        if recipe.start.pictures[1:]:
            raise JobRejected(f"{self._family.name} paints in one picture, not in a blend of several.", "member")

    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        """Return mask and masked picture as channels `[channels, height, width]`. Raises `JobRejected`."""
        self.check_pictures(recipe)
        assert isinstance(recipe.start, ImageToImage)
        assert recipe.start.mask is not None
        size = (recipe.width, recipe.height)
        mask = _fit(open_picture(recipe.start.mask).convert("L"), size)
        is_painted = torch.from_numpy(np.asarray(mask) >= MASK_THRESHOLD)[None, None]
        picture = _fit(open_picture(recipe.start.pictures[0].sha256), size)
        family: Any = with_autoencoder(self._family, recipe)
        latents = family.encode_pixels(family.pipeline.image_processor.preprocess(picture) * ~is_painted)
        small_mask = torch.nn.functional.interpolate(is_painted.float(), size=latents.shape[-2:])[0]
        channels = torch.cat([small_mask.to(latents.device), latents])
        if not torch.isfinite(channels).all():
            raise JobRejected("The model encoded the image as numbers that are not finite.", "model")
        return (PictureCondition(PictureSlot("inpaint"), (channels,)),)

    def make_additions(self, inputs: ForwardInputs, pictures: Sequence[PictureRows]) -> Additions:
        """Return the channels of all rows; those of padding rows are empty."""
        (rows,) = pictures
        (channels,) = rows.tensors
        return {ADDITION: (rows.spread(channels, len(inputs.x)).to(inputs.x.dtype),)}


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


MASK_CHANNELS = 1
ADDITION = "inpainting_channels"  # the additional input of a forward, `[rows, channels, height, width]`


def needs_mask(pipeline: Any) -> bool:
    """Whether the pipeline's U-Net is an inpainting one."""
    net = getattr(pipeline, "unet", None)
    vae = getattr(pipeline, "vae", None)
    if net is None or vae is None:
        return False
    channels = int(vae.config.latent_channels)
    return net.config.out_channels == channels and net.config.in_channels == 2 * channels + MASK_CHANNELS


def add_channels(net: Any, x: torch.Tensor, additions: Additions) -> torch.Tensor:
    """Return latents `[rows, …]` with the channels of mask and masked picture, for a network that takes them.

    Without additional channels all is painted anew, of nothing: so a network is timed or tried without a picture.
    """
    if net.config.in_channels == x.shape[1]:
        return x
    if ADDITION in additions:
        return torch.cat([x, *additions[ADDITION]], dim=1)
    mask = x.new_ones(len(x), MASK_CHANNELS, *x.shape[2:])
    return torch.cat([x, mask, torch.zeros_like(x)], dim=1)
