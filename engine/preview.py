"""Latents to a small picture while they develop: a linear map fitted through the model's own autoencoder.

The map costs a matrix product, where decoding would cost more than the step it shows; its picture has one pixel a
latent. Where the latents are tiny (the embedded model: 8×8) that would show nothing, and it is decoded instead.
"""

from __future__ import annotations

from weakref import ref

import numpy as np
import torch
from PIL import Image, ImageDraw

from engine.families.family import SMALL, Family

_SAMPLES = 12
_SEED = 3
_RIDGE = 1e-4


class Previewer:
    """Small pictures of one family's x0 estimates. The map is fitted at the first use, which takes seconds on a CPU."""

    def __init__(self, family: Family) -> None:
        self._known = ref(family)  # whoever keeps previewers keeps no model in memory by it
        self._map: torch.Tensor | None = None

    @property
    def _family(self) -> Family:
        family = self._known()
        assert family is not None, "a model is not dropped while it is used"
        return family

    def picture(self, x0: torch.Tensor) -> Image.Image:
        """The picture of latents `[channels, height, width]`."""
        if self._family.size <= SMALL:
            return self._family.decode(x0)
        if self._map is None:
            self._map = fit(self._family)
        flat = _with_one(x0.to("cpu", torch.float32).flatten(1).T)
        rgb = (flat @ self._map).clamp(0, 1).view(*x0.shape[1:], 3)
        return Image.fromarray((rgb * 255).round().to(torch.uint8).numpy())


def fit(family: Family) -> torch.Tensor:
    """The least-squares map `[channels + 1, 3]` from a latent pixel to the mean colour of the patch it stands for."""
    latents, colours = [], []
    for picture in _synthetic(family.size, np.random.default_rng(_SEED)):
        encoded = family.encode_image(picture).to("cpu", torch.float32)
        small = picture.resize((encoded.shape[2], encoded.shape[1]), Image.Resampling.BOX)
        latents.append(encoded.flatten(1).T)
        colours.append(torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).reshape(-1, 3))
    inputs, targets = _with_one(torch.cat(latents)).double(), torch.cat(colours).double()
    ridge = _RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)  # for channels that say the same
    return torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets).float()


def _with_one(flat: torch.Tensor) -> torch.Tensor:
    return torch.cat([flat, torch.ones(len(flat), 1)], dim=1)


def _synthetic(side: int, random: np.random.Generator) -> list[Image.Image]:
    """Coloured gradients with shapes on them: enough colours and edges to tell what each channel means."""
    pictures = []
    for _ in range(_SAMPLES):
        corners = Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8))
        picture = corners.resize((side, side), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for _ in range(6):
            x, y, w, h = random.integers(0, side, 4).tolist()
            colour = tuple(random.integers(0, 256, 3).tolist())
            draw.ellipse((x, y, x + w // 2, y + h // 2), fill=colour)
        pictures.append(picture)
    return pictures
