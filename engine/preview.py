"""Previews: a linear map turns latents into a small picture, at a cost that is negligible beside a step.

A preview has one pixel per latent. The embedded model's latents are too few for that (8×8): there the map reads each
latent with its neighbours and returns a patch of pixels. At first the map is a rough one (`known_maps`). The model's
own map is fitted through its encoder at a small size, one picture at a time, while nothing else waits.
"""

from __future__ import annotations

import logging
from typing import Protocol, runtime_checkable
from weakref import ref

import numpy as np
import torch
from PIL import Image, ImageDraw

from engine.families.family import SMALL, Family
from engine.known_maps import LatentSpace, rough
from engine.latent_map import Fitting, Floats, LatentMap
from engine.map_files import MapFiles

log = logging.getLogger(__name__)

LATENTS = 8  # a side of the pictures in the fit; encoders are convolutional, and most halve thrice
_SAMPLES = {1: 16, 3: 48}  # pictures in the fit, by the map's reach
_SEED = 3


@runtime_checkable
class HasLatentSpace(Protocol):
    """A family that exposes its autoencoder's latent configuration."""

    @property
    def latent_space(self) -> LatentSpace | None:
        """The latent space; None if the latents are already pixels."""
        ...


class Previewer:
    """Renders previews of one family's x0. Used by one thread; nothing waits for its fit."""

    def __init__(self, family: Family, files: MapFiles | None = None) -> None:
        self._known = ref(family)  # a previewer must not keep its model in memory
        self._files = files
        space = _space(family)
        self._space = space or LatentSpace(0)
        self._reach, self._patch = (3, self._space.factor) if family.size <= SMALL else (1, 1)
        kept = files and files.read(family.revision, self._space.channels, self._reach, self._patch)
        self.map = kept or rough(self._space)
        self._left = 0 if kept or space is None else _SAMPLES[self._reach]  # pictures left in the fit
        self._fitting = Fitting(self._space.channels, self._reach, self._patch)
        self._random = np.random.default_rng(_SEED)

    @property
    def _family(self) -> Family:
        family = self._known()
        assert family is not None, "a model is not evicted while it is used"
        return family

    @property
    def is_fitted(self) -> bool:
        """Whether the fit is complete."""
        return self._left == 0

    def reads(self, x0: torch.Tensor) -> bool:
        """Return whether the map fits these latents; latents that are already pixels need none."""
        return len(x0) == self.map.channels

    def picture(self, x0: torch.Tensor) -> Image.Image:
        """Return the preview of latents `[channels, height, width]`."""
        if not self.reads(x0):
            return self._family.decode(x0)
        picture = Image.fromarray(self.map.pixels(array(x0), _product))
        if self.map.patch == self._patch:
            return picture
        size = (picture.width * self._patch, picture.height * self._patch)
        return picture.resize(size, Image.Resampling.BICUBIC)

    def fit_on(self) -> None:
        """Encode one more picture of the fit. After the last, solve for the model's own map and store it."""
        left, self._left = self._left, 0  # after an error the fit does not continue
        if left:
            self._add(draw_shapes(LATENTS * self._space.factor, self._random))
        if left == 1:
            self.map = self._fitting.solve()
            if self._files is not None:
                self._files.write(self._family.revision, self.map)
        self._left = max(0, left - 1)

    def _add(self, picture: Image.Image) -> None:
        latents = array(self._family.encode_image(picture))
        _, height, width = latents.shape
        small = picture.resize((width * self._patch, height * self._patch), Image.Resampling.BOX)
        self._fitting.add(latents, np.asarray(small, dtype=np.uint8))


def fit(family: Family) -> LatentMap:
    """Return the model's own map, fitted at once."""
    previewer = Previewer(family)
    while not previewer.is_fitted:
        previewer.fit_on()
    return previewer.map


def array(latents: torch.Tensor) -> Floats:
    """Return latents as a float32 array on the host."""
    return latents.to("cpu", torch.float32).numpy()


def draw_shapes(side: int, random: np.random.Generator) -> Image.Image:
    """Draw a coloured gradient with shapes: enough colours and edges to tell what each channel means."""
    corners = Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    picture = corners.resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y, w, h = random.integers(0, side, 4).tolist()
        colour = tuple(random.integers(0, 256, 3).tolist())
        draw.ellipse((x, y, x + w // 2, y + h // 2), fill=colour)
    return picture


def _space(family: Family) -> LatentSpace | None:
    if isinstance(family, HasLatentSpace):
        return family.latent_space
    channels, height, _ = family.latent_shape(family.size, family.size)
    return LatentSpace(channels, factor=family.size // height)


def _product(one: Floats, other: Floats) -> Floats:
    """Multiply in this thread alone, in a third of a millisecond.

    A library's team of threads would keep spinning beside the engine's: with torch, previews cost the embedded model a
    quarter of each step.
    """
    return np.einsum("ij,jk->ik", one, other)
