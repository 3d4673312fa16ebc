"""Picture bytes to pixels and back: what comes from outside is bounded and of a known format before it is decoded.

Knows Pillow; knows nothing of grids, films or where bytes come from. CPU-heavy: async callers use a thread.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

from PIL import Image

Form = Literal["PNG", "JPEG", "WEBP"]
FORMS: tuple[Form, ...] = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 4096 * 4096
PAPER = (18, 18, 20)  # what stands behind transparent or missing pictures


class Unreadable(ValueError):
    """Bytes that are no picture, or one of a format or size that is not taken."""


def opened(payload: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`payload` as RGB pixels (its first frame). Raises `Unreadable`, and decodes nothing over `max_pixels`."""
    try:
        with Image.open(io.BytesIO(payload), formats=FORMS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise Unreadable(f"a picture of {width}×{height} is larger than the {max_pixels} pixels taken")
            return _flat(picture)
    except Unreadable:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, OverflowError) as error:
        raise Unreadable(f"not a readable {', '.join(FORMS)} picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable("the picture is too large") from error


def _flat(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    paper = Image.new("RGBA", layer.size, (*PAPER, 255))
    return Image.alpha_composite(paper, layer).convert("RGB")


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Lanczos; the picture itself where it has that size already."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def saved(picture: Image.Image, form: Form, quality: int = 90) -> bytes:
    """The picture's bytes with no metadata: the same pixels give the same bytes. `quality` 100 is lossless for WebP."""
    out = io.BytesIO()
    if form == "PNG":
        picture.save(out, "PNG", compress_level=6)
    elif form == "JPEG":
        picture.save(out, "JPEG", quality=quality, subsampling=0, optimize=True)
    else:
        picture.save(out, "WEBP", quality=quality, lossless=quality >= 100, method=4)
    return out.getvalue()
