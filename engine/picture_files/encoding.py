"""Pictures as bytes: PNG with its recipe, JPEG previews and thumbnails. Deterministic."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

THUMBNAIL_SIDE = 128  # pixels of a keyframe's longest side


def encode_png(picture: Image.Image, text: str) -> bytes:
    """Return a PNG with `text` under the key `parameters`, as A1111 and gallery software expect."""
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    return _save(picture, format="PNG", pnginfo=chunks, compress_level=6)


def encode_jpeg(picture: Image.Image) -> bytes:
    return _save(picture.convert("RGB"), format="JPEG", quality=88)


def encode_thumbnail(picture: Image.Image) -> bytes:
    """Return a JPEG of at most `THUMBNAIL_SIDE` pixels a side: a ladder has dozens, and WebP is six times slower."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return _save(small, format="JPEG", quality=85, subsampling=0)


def read_png_size(png: bytes) -> tuple[int, int]:
    """Return width and height from the header (PNG specification, 11.2.2 IHDR)."""
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def _save(picture: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
