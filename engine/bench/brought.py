"""A synthetic init image and its mask, as a member would upload them, at strength 0.5. Measures no time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

from PIL import Image

from engine.job import ImageToImage, InitImage

STRENGTH = 0.5


def make_image_to_image() -> ImageToImage:
    """Return the init image as a recipe names it."""
    image_hash, mask_hash = make_blobs()
    return ImageToImage((InitImage(image_hash),), STRENGTH, mask_hash)


@lru_cache(maxsize=1)
def make_blobs() -> Mapping[str, bytes]:
    """Return the PNGs by SHA-256: a gradient picture and a mask whose right half is white."""
    gradient = Image.linear_gradient("L")
    image = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    mask = gradient.rotate(90).point([0] * 128 + [255] * 128)
    return {hashlib.sha256(content).hexdigest(): content for content in (_encode_png(image), _encode_png(mask))}


def _encode_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
