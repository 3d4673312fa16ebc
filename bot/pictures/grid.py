"""Grids of up to four pictures, with a dark tile for each that is still to come.

The same pictures give the same bytes. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from bot.pictures.image_codec import BACKGROUND, ImageFormat, decode_image, encode_image, read_recipe_text, resize_image

if TYPE_CHECKING:
    from collections.abc import Sequence

CELL_SIZE = 256
GAP = 4
MAX_GRID_SIDE = 4096  # pixels on the longer side of a grid
_TILE_COLOUR = (30, 30, 34)


def compose(
    pictures: Sequence[bytes | None],
    cell: int = CELL_SIZE,
    *,
    image_format: ImageFormat = "PNG",
    shape: tuple[int, int] = (1, 1),
) -> bytes:
    """Return 1 to 4 pictures as one: alone, side by side, or two by two. None is a picture still to come.

    All are scaled to the size of the largest; if its shorter side is below `cell` pixels, Lanczos enlarges it to that.
    `shape` is the tiles' width : height while there is no picture. The grid carries the recipe of the first picture
    that has one; the seeds of the others follow from it. Raises `UnreadableImage` for anything but PNG, JPEG or WebP
    pictures of bounded size, `ValueError` for a number of pictures other than 1 to 4.
    """
    images = [None if picture is None else decode_image(picture) for picture in pictures]
    texts = (read_recipe_text(picture) for picture in pictures if picture and image_format != "JPEG")
    return encode_image(compose_images(images, cell, shape), image_format, text=next(filter(None, texts), ""))


def compose_images(
    pictures: Sequence[Image.Image | None], cell: int = CELL_SIZE, shape: tuple[int, int] = (1, 1)
) -> Image.Image:
    """Do the same as `compose`, on decoded pictures."""
    if not 1 <= len(pictures) <= 4:
        raise ValueError(f"a grid has 1 to 4 pictures, not {len(pictures)}")
    columns = min(2, len(pictures))
    rows = (len(pictures) + 1) // 2
    sizes = [picture.size for picture in pictures if picture is not None]
    largest = max(sizes, key=lambda size: size[0] * size[1], default=shape)
    width, height = scale_size(*largest, cell, MAX_GRID_SIDE // columns - GAP)
    grid_width = columns * (width + GAP) - GAP
    grid_height = rows * (height + GAP) - GAP
    canvas = Image.new("RGB", (grid_width, grid_height), BACKGROUND)
    for index, picture in enumerate(pictures):
        left, top = index % 2 * (width + GAP), index // 2 * (height + GAP)
        if picture is None:
            canvas.paste(_TILE_COLOUR, (left, top, left + width, top + height))
        else:
            canvas.paste(resize_image(picture, (width, height)), (left, top))
    return canvas


def scale_size(width: int, height: int, min_side: int, max_side: int) -> tuple[int, int]:
    """Return a size of the same shape: shorter side from `min_side` on, unless the longer exceeds `max_side`."""
    factor = max(1.0, min_side / min(width, height))
    factor = min(factor, max_side / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def shrink_to_fit(picture: bytes, limit: int) -> tuple[bytes, ImageFormat] | None:
    """Return the picture in at most `limit` bytes: unchanged, as lossless WebP, then as lossy; None if nothing fits.

    Raises `UnreadableImage` if it must shrink the picture and cannot read it.
    """
    if len(picture) <= limit:
        return picture, _detect_format(picture)
    pixels = decode_image(picture)
    text = read_recipe_text(picture)
    for quality in (100, 95, 90, 80, 65):
        content = encode_image(pixels, "WEBP", quality, text)
        if len(content) <= limit:
            return content, "WEBP"
    return None


def _detect_format(picture: bytes) -> ImageFormat:
    if picture.startswith(b"\x89PNG"):
        return "PNG"
    return "JPEG" if picture.startswith(b"\xff\xd8") else "WEBP"
