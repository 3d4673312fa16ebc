"""A synthetic init image and its mask, as a member would upload them, at strength 0.5. Measures no time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

from PIL import Image

from engine.job import Forward, Source

STRENGTH = 0.5


def start() -> Forward:
    """Return the init image as a recipe names it."""
    picture, mask = blobs()
    return Forward((Source(picture),), STRENGTH, mask)


@lru_cache(maxsize=1)
def blobs() -> Mapping[str, bytes]:
    """Return the PNGs by SHA-256: a gradient picture and a mask whose right half is white."""
    gradient = Image.linear_gradient("L")
    picture = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    mask = gradient.rotate(90).point([0] * 128 + [255] * 128)
    return {hashlib.sha256(content).hexdigest(): content for content in (_png(picture), _png(mask))}


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
