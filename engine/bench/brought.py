"""A picture and a mask to begin with, of half the steps, as somebody would bring them. Knows no clocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

from PIL import Image

from engine.job import Forward, Source

STRENGTH = 0.5


def start() -> Forward:
    """What a recipe says of them."""
    picture, mask = blobs()
    return Forward((Source(picture),), STRENGTH, mask)


@lru_cache(maxsize=1)
def blobs() -> Mapping[str, bytes]:
    """The picture, a gradient, and the mask, whose right half is white; by SHA-256."""
    gradient = Image.linear_gradient("L")
    picture = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    mask = gradient.rotate(90).point([0] * 128 + [255] * 128)
    return {hashlib.sha256(content).hexdigest(): content for content in (_png(picture), _png(mask))}


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
