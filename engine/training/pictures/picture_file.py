"""Decodes one untrusted picture file safely to RGB, or refuses it with a short reason.

Knows formats and their pitfalls; knows nothing of captions or networks. It checks sizes before it decodes.
"""

from __future__ import annotations

import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
TOO_MANY = f"has more than {MAX_PIXELS // 1_000_000} million pixels, which are not read"
MIN_SIDE = 16
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # 16-bit grey
WHITE = (255, 255, 255)


class Unusable(ValueError):
    """The reason why a file is left out: the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Decoded:
    """A decoded picture: `pixels` is RGB, upright; `cut_out` if it was transparent and now has a white background."""

    pixels: Image.Image
    cut_out: bool


def decode(path: Path, *, first_frame: bool = False) -> Decoded:
    """Decode a picture, rotated by its EXIF, without transparency.

    Raises `Unusable`; also for an animation, unless its `first_frame` is wanted.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(about.st_mode):
        raise Unusable("is not a regular file")
    if about.st_size > MAX_BYTES:
        raise Unusable(f"has {about.st_size >> 20} MB, and at most {MAX_BYTES >> 20} are read")
    if not about.st_size:
        raise Unusable("is empty")
    try:
        return _decoded(path, first_frame)
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable(TOO_MANY) from error
    except Exception as error:  # decoders fail in many ways on a damaged file
        raise Unusable("cannot be decoded: it is damaged, cut short or no picture") from error


def _decoded(path: Path, first_frame: bool) -> Decoded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's bomb warning comes after our check; damaged EXIF does not matter
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise Unusable(TOO_MANY)
            if min(width, height) < MIN_SIDE:
                raise Unusable(f"is {width}×{height} pixels, and each side needs {MIN_SIDE}")
            moves = (
                getattr(opened, "is_animated", False) and opened.format != "MPO"
            )  # a phone's JPEG with a second view
            if moves and not first_frame:
                raise Unusable("is animated: save the wanted frame as a separate picture")
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            return _plain(upright)


def _plain(picture: Image.Image) -> Decoded:
    if picture.mode in DEEP:
        grey = np.asarray(picture).astype(np.float32) / 257
        return Decoded(Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB"), cut_out=False)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*WHITE, 255))
        see_through = layer.getchannel("A").getextrema() != (255, 255)
        return Decoded(Image.alpha_composite(ground, layer).convert("RGB"), see_through)
    return Decoded(picture.convert("RGB"), cut_out=False)


def squared(decoded: Decoded, side: int) -> Image.Image:
    """Fit into `side` × `side`: pad a cut-out picture with white, to lose nothing; crop others to the middle."""
    shape, finely = (side, side), Image.Resampling.LANCZOS
    if decoded.cut_out:
        return ImageOps.pad(decoded.pixels, shape, finely, color=WHITE)
    return ImageOps.fit(decoded.pixels, shape, finely)
