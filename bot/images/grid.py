"""Grids of up to four pictures, with a dark tile for each that is still to come.

The same pictures give the same bytes. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from bot.images.pixels import PAPER, Form, opened, resized, saved, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

CELL = 256
GAP = 4
MAX_SHEET = 4096  # pixels on the longer side of a grid
_TILE = (30, 30, 34)


def compose(
    pictures: Sequence[bytes | None],
    cell: int = CELL,
    *,
    form: Form = "PNG",
    quality: int = 90,
    shape: tuple[int, int] = (1, 1),
) -> bytes:
    """Return 1 to 4 pictures as one: alone, side by side, or two by two. None is a picture still to come.

    All are scaled to the size of the largest; if its shorter side is below `cell` pixels, it is enlarged to that by
    Lanczos. `shape` is the tiles' width : height while there is no picture. The grid carries the recipe of the first
    picture that has one; the seeds of the others follow from it. Raises `Unreadable` for what is no PNG, JPEG or WebP
    picture of bounded size, `ValueError` for a number of pictures other than 1 to 4.
    """
    made = sheet([None if one is None else opened(one) for one in pictures], cell, shape)
    return saved(made, form, quality, _text(pictures) if form != "JPEG" else "")


def sheet(pictures: Sequence[Image.Image | None], cell: int = CELL, shape: tuple[int, int] = (1, 1)) -> Image.Image:
    """Do `compose` on pixels."""
    if not 1 <= len(pictures) <= 4:
        raise ValueError(f"a grid has 1 to 4 pictures, not {len(pictures)}")
    columns, rows = min(2, len(pictures)), (len(pictures) + 1) // 2
    width, height = _cell(pictures, cell, shape, MAX_SHEET // columns - GAP)
    across, down = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    made = Image.new("RGB", (across, down), PAPER)
    for place, picture in enumerate(pictures):
        corner = (place % 2 * (width + GAP), place // 2 * (height + GAP))
        tile = Image.new("RGB", (width, height), _TILE) if picture is None else resized(picture, (width, height))
        made.paste(tile, corner)
    return made


def _cell(pictures: Sequence[Image.Image | None], cell: int, shape: tuple[int, int], most: int) -> tuple[int, int]:
    """Return a tile's size: the largest picture's, its shorter side at least `cell`, its longer one at most `most`."""
    sizes = [picture.size for picture in pictures if picture is not None]
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=shape)
    return scaled(width, height, cell, most)


def scaled(width: int, height: int, least: int, most: int) -> tuple[int, int]:
    """Return a size of the same shape, its shorter side at least `least` unless the longer one would exceed `most`."""
    factor = max(1.0, least / min(width, height))
    factor = min(factor, most / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def under(picture: bytes, limit: int) -> tuple[bytes, Form] | None:
    """Return the picture in at most `limit` bytes: unchanged, as lossless WebP, then as lossy; None if nothing fits.

    Raises `Unreadable` if it must shrink the picture and cannot read it.
    """
    if len(picture) <= limit:
        return picture, _form(picture)
    pixels, text = opened(picture), text_of(picture)
    for quality in (100, 95, 90, 80, 65):
        smaller = saved(pixels, "WEBP", quality, text)
        if len(smaller) <= limit:
            return smaller, "WEBP"
    return None


def _text(pictures: Sequence[bytes | None]) -> str:
    return next((text for text in (text_of(one) for one in pictures if one) if text), "")


def _form(picture: bytes) -> Form:
    if picture.startswith(b"\x89PNG"):
        return "PNG"
    return "JPEG" if picture.startswith(b"\xff\xd8") else "WEBP"
