"""Augments the user's few pictures into views: slightly zoomed, shifted, brighter or darker; mirrored only on request.

A view is a pure function of (picture, number, seed). Captions stay true: a view changes nothing that a caption
mentions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance

from training.pictures.dataset import DatasetPicture
from training.pictures.picture_file import DecodedPicture, decode_picture, fit_square

ENOUGH_ROWS = 1000  # cache rows above which pictures need no more views
MAX_VIEWS = 8  # views of one picture
MIN_VISIBLE_SHARE = 0.9  # the smallest share of a side that a view shows
MAX_BRIGHTNESS_CHANGE = 0.06


def number_views(pictures: Sequence[DatasetPicture], flip: bool) -> list[tuple[int, int]]:
    """Return all (picture, number) pairs: view 0 is the unchanged picture; with `flip` odd numbers are mirrored."""
    views = max(1, min(MAX_VIEWS, ENOUGH_ROWS // len(pictures)))
    return [(index, number) for index in range(len(pictures)) for number in range(max(views, 1 + flip))]


def render_view(picture: DatasetPicture, number: int, side: int, seed: int, flip: bool) -> np.ndarray:
    """Render a view, uint8 [side, side, 3]. Raises `UnusablePicture` if the file has changed."""
    decoded = decode_picture(picture.path)
    rng = np.random.default_rng([seed, int(picture.digest[:8], 16), number])
    square = fit_square(decoded, side)
    if number > flip:
        square = _crop_at_random(decoded, side, rng)
    if flip and number % 2:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(square)


def _crop_at_random(decoded: DecodedPicture, side: int, rng: np.random.Generator) -> Image.Image:
    visible_share = rng.uniform(MIN_VISIBLE_SHARE, 1.0)
    large_square = fit_square(decoded, max(side, round(side / visible_share)))
    left, top = rng.integers(0, large_square.width - side + 1, 2)
    crop = large_square.crop((int(left), int(top), int(left) + side, int(top) + side))
    if decoded.was_transparent:  # its background is white and stays white
        return crop
    return ImageEnhance.Brightness(crop).enhance(
        float(rng.uniform(1 - MAX_BRIGHTNESS_CHANGE, 1 + MAX_BRIGHTNESS_CHANGE))
    )
