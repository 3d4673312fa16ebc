"""Latents to a small picture while they develop: by a linear map, which costs what is nothing beside a step.

A picture has one pixel a latent. Where the latents are tiny (the embedded model: 8×8) that would show nothing: there a
map reads each latent with its neighbours and gives a patch of pixels. First the map is a rough one (`known_maps`); the
model's own is fitted through its encoder at a small side, a picture at a time, whenever nothing else is to do.
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

LATENTS = 8  # on a side of a picture that a map is fitted with: encoders are convolutional, and most halve thrice
_SAMPLES = {1: 16, 3: 48}  # pictures, by the map's reach
_SEED = 3


@runtime_checkable
class HasLatentSpace(Protocol):
    """A family that says what its autoencoder's configuration says."""

    @property
    def latent_space(self) -> LatentSpace | None:
        """None: its latents are pictures already."""
        ...


class Previewer:
    """Small pictures of one family's x0 estimates. Belongs to one thread; nobody waits for its map."""

    def __init__(self, family: Family, files: MapFiles | None = None) -> None:
        self._known = ref(family)  # whoever keeps previewers keeps no model in memory by it
        self._files = files
        space = _space(family)
        self._space = space or LatentSpace(0)
        self._reach, self._patch = (3, self._space.factor) if family.size <= SMALL else (1, 1)
        kept = files and files.read(family.revision, self._space.channels, self._reach, self._patch)
        self.map = kept or rough(self._space)
        self._left = 0 if kept or space is None else _SAMPLES[self._reach]  # pictures of the fit
        self._fitting = Fitting(self._space.channels, self._reach, self._patch)
        self._random = np.random.default_rng(_SEED)

    @property
    def _family(self) -> Family:
        family = self._known()
        assert family is not None, "a model is not dropped while it is used"
        return family

    @property
    def is_fitted(self) -> bool:
        """Whether nothing is left of the fit."""
        return self._left == 0

    def reads(self, x0: torch.Tensor) -> bool:
        """Whether there is a map of such latents: what is a picture already needs none."""
        return len(x0) == self.map.channels

    def picture(self, x0: torch.Tensor) -> Image.Image:
        """The picture of latents `[channels, height, width]`."""
        if not self.reads(x0):
            return self._family.decode(x0)
        picture = Image.fromarray(self.map.pixels(array(x0), _product))
        if self.map.patch == self._patch:
            return picture
        size = (picture.width * self._patch, picture.height * self._patch)
        return picture.resize(size, Image.Resampling.BICUBIC)

    def fit_on(self) -> None:
        """Encode one more picture of the fit; after the last, the model's own map is there, and kept."""
        left, self._left = self._left, 0  # a model that fails at one picture is not asked for the others
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
    """The model's own map, at once."""
    previewer = Previewer(family)
    while not previewer.is_fitted:
        previewer.fit_on()
    return previewer.map


def array(latents: torch.Tensor) -> Floats:
    """Latents on the host, for a map."""
    return latents.to("cpu", torch.float32).numpy()


def draw_shapes(side: int, random: np.random.Generator) -> Image.Image:
    """A coloured gradient with shapes on it: enough colours and edges to tell what each channel means."""
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
    """In this thread alone, a third of a millisecond. A library's team of threads would spin on beside the engine's:
    by torch, previews cost a quarter of each step of the embedded model.
    """
    return np.einsum("ij,jk->ik", one, other)
