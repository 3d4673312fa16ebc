"""Augments the user's few pictures into views: slightly zoomed, shifted, brighter or darker; mirrored only on request.

Knows pixels; a view is a pure function of (picture, number, seed). Captions stay true: a view changes nothing that a
caption mentions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance

from engine.training.pictures.folder import Picture
from engine.training.pictures.picture_file import Decoded, decode, squared

AMPLE = 1000  # cache rows above which pictures need no more views
MOST = 8  # views of one picture
NEARER = 0.9  # the smallest share of a side that a view shows
BRIGHTER = 0.06


def numbered(pictures: Sequence[Picture], flip: bool) -> list[tuple[int, int]]:
    """Return all (picture, number) pairs: view 0 is the unchanged picture; with `flip` odd numbers are mirrored."""
    views = max(1, min(MOST, AMPLE // len(pictures)))
    return [(index, number) for index in range(len(pictures)) for number in range(max(views, 1 + flip))]


def view(picture: Picture, number: int, side: int, seed: int, flip: bool) -> np.ndarray:
    """Render a view, uint8 [side, side, 3]. Raises `Unusable` if the file has changed."""
    decoded = decode(picture.path)
    rng = np.random.default_rng([seed, int(picture.digest[:8], 16), number])
    whole = squared(decoded, side)
    if number > flip:
        whole = _looked_at(decoded, side, rng)
    if flip and number % 2:
        whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(whole)


def _looked_at(decoded: Decoded, side: int, rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(NEARER, 1.0)
    large = squared(decoded, max(side, round(side / share)))
    left, top = rng.integers(0, large.width - side + 1, 2)
    part = large.crop((int(left), int(top), int(left) + side, int(top) + side))
    if decoded.cut_out:  # its background is white and stays white
        return part
    return ImageEnhance.Brightness(part).enhance(float(rng.uniform(1 - BRIGHTER, 1 + BRIGHTER)))
