"""Previews: a linear map turns latents into a small picture, at a cost that is negligible beside a step.

A preview has one pixel per latent. The embedded model's latents are too few for that (16×16): there the map reads each
latent with its neighbours and returns a patch of pixels. The embedded model, and small models that `train diffusion`
writes, bring their map along. For others the map is a rough one at first (`known_maps`), and live previews of a small
model are decoded instead. The model's own map is fitted through its encoder at a small size, one picture at a time,
while nothing else waits.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol, runtime_checkable
from weakref import ref

import numpy as np
import torch
from PIL import Image, ImageDraw

from engine.models.family import SMALL_MODEL_SIZE, Family
from engine.preview_maps.latent_map import (
    FloatArray,
    LatentMap,
    LatentMapFit,
    LatentSpace,
    MapStore,
    read_map,
    rough_map,
)

log = logging.getLogger(__name__)

FIT_LATENTS_SIDE = 8  # a side of the pictures in the fit; encoders are convolutional, and most halve thrice
_FIT_PICTURES = {1: 16, 3: 48}  # pictures in the fit, by the map's reach
_SEED = 3


@runtime_checkable
class HasLatentSpace(Protocol):
    """A family that exposes its autoencoder's latent configuration."""

    @property
    def latent_space(self) -> LatentSpace | None:
        """The latent space; None if the latents are already pixels."""
        ...


@runtime_checkable
class HasPreviewMap(Protocol):
    """A family whose model may bring its own map along."""

    @property
    def preview_map_file(self) -> Path | None:
        """Where the map may be; None where there is none for sure."""
        ...


def choose_map_shape(size: int, spatial_factor: int) -> tuple[int, int]:
    """Return the reach and the patch of the map of a model that draws `size` pixels a side."""
    return (3, spatial_factor) if size <= SMALL_MODEL_SIZE else (1, 1)


class Previewer:
    """Renders previews of one family's x0. Used by one thread; nothing waits for its fit."""

    def __init__(self, family: Family, map_store: MapStore | None = None) -> None:
        self._family_ref = ref(family)  # a previewer must not keep its model in memory
        self._map_store = map_store
        latent_space = _latent_space(family)
        self._latent_space = latent_space or LatentSpace(0)
        self._reach, self._patch = choose_map_shape(family.size, self._latent_space.spatial_factor)
        shape = self._latent_space.channels, self._reach, self._patch
        stored_map = map_store and map_store.load_map(family.revision, *shape)
        if stored_map is None and isinstance(family, HasPreviewMap) and family.preview_map_file is not None:
            stored_map = read_map(family.preview_map_file, *shape)
        self.latent_map = stored_map or rough_map(self._latent_space)
        self._pictures_left = (
            0 if stored_map or latent_space is None else _FIT_PICTURES[self._reach]
        )  # pictures left in the fit
        self._fit = LatentMapFit(self._latent_space.channels, self._reach, self._patch)
        self._random = np.random.default_rng(_SEED)

    @property
    def _family(self) -> Family:
        family = self._family_ref()
        assert family is not None, "a model is not evicted while it is used"
        return family

    @property
    def is_fitted(self) -> bool:
        """Whether the fit is complete."""
        return self._pictures_left == 0

    @property
    def is_worth_decoding(self) -> bool:
        """Whether live previews should be decoded: a small model is quick, and its rough map has false colours."""
        return not self.is_fitted and self._reach > 1

    def can_render(self, x0: torch.Tensor) -> bool:
        """Return whether the map fits these latents; latents that are already pixels need none."""
        return len(x0) == self.latent_map.channels

    def render(self, x0: torch.Tensor) -> Image.Image:
        """Return the preview of latents `[channels, height, width]`."""
        if not self.can_render(x0):
            return self._family.decode(x0)
        image = Image.fromarray(self.latent_map.render(to_array(x0), _multiply))
        if self.latent_map.patch == self._patch:
            return image
        size = (image.width * self._patch, image.height * self._patch)
        return image.resize(size, Image.Resampling.BICUBIC)

    def fit_one_more(self) -> None:
        """Encode one more picture of the fit. After the last, solve for the model's own map and store it."""
        # after an error the fit does not continue
        pictures_left = self._pictures_left
        self._pictures_left = 0
        if pictures_left:
            self._add_to_fit(draw_shapes(FIT_LATENTS_SIDE * self._latent_space.spatial_factor, self._random))
        if pictures_left == 1:
            self.latent_map = self._fit.solve()
            if self._map_store is not None:
                self._map_store.save_map(self._family.revision, self.latent_map)
        self._pictures_left = max(0, pictures_left - 1)

    def _add_to_fit(self, picture: Image.Image) -> None:
        latents = to_array(self._family.encode_image(picture))
        _, height, width = latents.shape
        small = picture.resize((width * self._patch, height * self._patch), Image.Resampling.BOX)
        self._fit.add_picture(latents, np.asarray(small, dtype=np.uint8))


def fit_preview_map(family: Family) -> LatentMap:
    """Return the model's own map; fit it at once if it has none yet."""
    previewer = Previewer(family)
    while not previewer.is_fitted:
        previewer.fit_one_more()
    return previewer.latent_map


def to_array(latents: torch.Tensor) -> FloatArray:
    """Return latents `[channels, height, width]` as a float32 array of the same shape on the host."""
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


def _latent_space(family: Family) -> LatentSpace | None:
    if isinstance(family, HasLatentSpace):
        return family.latent_space
    channels, height, _ = family.latent_shape(family.size, family.size)
    return LatentSpace(channels, spatial_factor=family.size // height)


def _multiply(matrix: FloatArray, other_matrix: FloatArray) -> FloatArray:
    """Multiply in this thread alone, in a third of a millisecond.

    A library's team of threads would keep spinning beside the engine's: with torch, previews cost the embedded model a
    quarter of each step.
    """
    return np.einsum("ij,jk->ik", matrix, other_matrix)
