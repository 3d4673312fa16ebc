"""Decodes one untrusted picture file safely to RGB, or refuses it with a short reason.

It checks sizes before it decodes. It is independent of captions and networks.
"""

from __future__ import annotations

import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SUPPORTED_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
TOO_MANY_PIXELS = f"has more than {MAX_PIXELS // 1_000_000} million pixels, which are not read"
MIN_SIDE = 16
GREY_16_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # 16-bit grey
WHITE = (255, 255, 255)


class UnusablePicture(ValueError):
    """The reason why a file is left out: the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class DecodedPicture:
    """A decoded picture: `pixels` is RGB, upright; `was_transparent`: it now has a white background."""

    pixels: Image.Image
    was_transparent: bool


def decode_picture(path: Path, *, first_frame: bool = False) -> DecodedPicture:
    """Decode a picture, rotated by its EXIF, without transparency.

    Raises `UnusablePicture`, also for an animation unless `first_frame` is set.
    """
    try:
        file_stat = path.stat()
    except OSError as error:
        raise UnusablePicture(f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(file_stat.st_mode):
        raise UnusablePicture("is not a regular file")
    if file_stat.st_size > MAX_BYTES:
        raise UnusablePicture(f"has {file_stat.st_size >> 20} MB, and at most {MAX_BYTES >> 20} are read")
    if not file_stat.st_size:
        raise UnusablePicture("is empty")
    try:
        return _decode_file(path, first_frame)
    except UnusablePicture:
        raise
    except Image.DecompressionBombError as error:
        raise UnusablePicture(TOO_MANY_PIXELS) from error
    except Exception as error:  # decoders fail in many ways on a damaged file
        raise UnusablePicture("cannot be decoded: it is damaged, cut short or no picture") from error


def _decode_file(path: Path, first_frame: bool) -> DecodedPicture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's bomb warning comes after our check; damaged EXIF does not matter
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnusablePicture(TOO_MANY_PIXELS)
            if min(width, height) < MIN_SIDE:
                raise UnusablePicture(f"is {width}×{height} pixels, and each side needs {MIN_SIDE}")
            # of a phone's JPEG the second view is no frame
            is_animated = getattr(image, "is_animated", False) and image.format != "MPO"
            if is_animated and not first_frame:
                raise UnusablePicture("is animated: save the wanted frame as a separate picture")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(picture: Image.Image) -> DecodedPicture:
    if picture.mode in GREY_16_BIT_MODES:
        grey = (np.asarray(picture).astype(np.float32) / 257).clip(0, 255).round().astype(np.uint8)
        return DecodedPicture(Image.fromarray(grey).convert("RGB"), was_transparent=False)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        background = Image.new("RGBA", layer.size, (*WHITE, 255))
        is_transparent = layer.getchannel("A").getextrema() != (255, 255)
        return DecodedPicture(Image.alpha_composite(background, layer).convert("RGB"), is_transparent)
    return DecodedPicture(picture.convert("RGB"), was_transparent=False)


def fit_square(decoded: DecodedPicture, side: int) -> Image.Image:
    """Fit into `side` × `side`: pad a cut-out picture with white, to lose nothing; crop others to the middle."""
    size = (side, side)
    resampling = Image.Resampling.LANCZOS
    if decoded.was_transparent:
        return ImageOps.pad(decoded.pixels, size, resampling, color=WHITE)
    return ImageOps.fit(decoded.pixels, size, resampling)
