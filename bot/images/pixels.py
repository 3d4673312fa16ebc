"""Picture bytes to pixels and back. Format and size of foreign pictures are checked before decoding.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

Form = Literal["PNG", "JPEG", "WEBP"]
FORMS: tuple[Form, ...] = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 4096 * 4096
RECIPE, MAX_TEXT = "parameters", 32_768  # key of a PNG's text chunk, and characters in it
PNG = b"\x89PNG\r\n\x1a\n"
PAPER = (18, 18, 20)  # background of transparent or missing pictures


class Unreadable(ValueError):
    """Bytes that are no picture, or one of an unsupported format or size."""


def opened(payload: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of `payload` to RGB. Raises `Unreadable`; decodes nothing over `max_pixels`."""
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
    """Resize by Lanczos; return the picture itself if it has that size."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def saved(picture: Image.Image, form: Form, quality: int = 90, text: str = "") -> bytes:
    """Encode the picture: the same pixels and text give the same bytes. `quality` 100 is lossless for WebP.

    `text` is its recipe, stored as A1111 does (the web UI whose form every gallery reads): in a PNG under `parameters`,
    in a WebP as the EXIF user comment, in a JPEG not at all. No other metadata is written. PNG compression is low,
    since somebody waits: a quarter of the time for a fifth more bytes.
    """
    out = io.BytesIO()
    if form == "PNG":
        picture.save(out, "PNG", compress_level=2, pnginfo=_chunks(text))
    elif form == "JPEG":
        picture.save(out, "JPEG", quality=quality, subsampling=0)
    else:
        picture.save(out, "WEBP", quality=quality, lossless=quality >= 100, method=4, exif=_comment(text))
    return out.getvalue()


def text_of(payload: bytes) -> str:
    """Return the recipe in a PNG; empty if it has none, or one longer than ours can be."""
    try:
        with Image.open(io.BytesIO(payload), formats=("PNG",)) as picture:
            text = str(picture.info.get(RECIPE) or "")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, OverflowError):
        return ""
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return ""
    return text if len(text) <= MAX_TEXT else ""


def _chunks(text: str) -> PngInfo:
    chunks = PngInfo()
    if text:
        chunks.add_text(RECIPE, text)
    return chunks


def _comment(text: str) -> bytes:
    if not text:
        return b""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def size(png: bytes) -> tuple[int, int] | None:
    """Return width and height from a PNG's header (PNG specification, 11.2.2 IHDR); None if it is no PNG."""
    if len(png) < 33 or not png.startswith(PNG) or png[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)
