"""Canvases and masks for outpainting: zoom out, pan, square. Pure.

The picture lies on a canvas, shrunk, moved or cut; the mask is white where the picture is not. The picture's mirrored
and blurred edge fills the area around it, so that a model continues in its colours. The engine decides how softly a
mask ends. Inputs are PNGs from the upload decoder or a worker; bytes that Pillow cannot open raise `UnreadableImage`.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image, ImageFilter, ImageOps

from bot.pictures.image_codec import decode_image, encode_image

Direction = Literal["left", "right", "up", "down"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive
PAN_VECTORS: dict[Direction, tuple[int, int]] = {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}
PAN_FRACTION = 0.5  # share of the picture that a pan moves off the canvas
BLUR_SHARE = 0.06  # share of the shorter side
SEAM_SHARE = 0.02  # share of the shorter side: the seam is repainted, too


def zoom_out(png: bytes, factor: float) -> tuple[bytes, bytes]:
    """Return the picture `factor` times smaller in the middle of its canvas, and the mask. Raises ValueError."""
    if not 1 < factor <= 16:
        raise ValueError(f"{factor} does not zoom out")
    picture = decode_image(png)
    inner_size = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    return _place_centred(picture.resize(inner_size, Image.Resampling.LANCZOS), picture.size)


def pan(png: bytes, direction: Direction, fraction: float = PAN_FRACTION) -> tuple[bytes, bytes]:
    """Return the picture moved against the direction by a fraction of its side, and the mask. Raises ValueError."""
    if not 0 < fraction < 1:
        raise ValueError(f"a pan by {fraction} is not between 0 and 1")
    picture, (x, y) = decode_image(png), PAN_VECTORS[direction]
    position = (round(x * fraction * picture.width), round(y * fraction * picture.height))
    return _place_on_canvas(picture, picture.size, position)


def extend_to_square(png: bytes) -> tuple[bytes, bytes]:
    """Return the picture in the middle of a square as wide as its longer side, and the mask (black for a square)."""
    picture = decode_image(png)
    side = max(picture.size)
    return _place_centred(picture, (side, side))


def _place_centred(inner: Image.Image, size: tuple[int, int]) -> tuple[bytes, bytes]:
    return _place_on_canvas(inner, size, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))


def _place_on_canvas(inner: Image.Image, size: tuple[int, int], position: tuple[int, int]) -> tuple[bytes, bytes]:
    shorter_side = min(size)
    canvas = _fill_mirrored(inner, size, position).filter(ImageFilter.GaussianBlur(BLUR_SHARE * shorter_side))
    canvas.paste(inner, position)
    box = (position[0], position[1], position[0] + inner.width, position[1] + inner.height)
    mask = Image.new("L", size, 255)
    mask.paste(0, _shrink_box(box, size, max(1, round(SEAM_SHARE * shorter_side))))
    return encode_image(canvas, "PNG"), encode_image(mask, "PNG")


def _shrink_box(box: Box, size: tuple[int, int], seam: int) -> Box:
    """Return the part of the box on the canvas, less a seam on each side where new area begins."""
    left, top, right, bottom = box
    return (
        left + seam if left > 0 else 0,
        top + seam if top > 0 else 0,
        right - seam if right < size[0] else size[0],
        bottom - seam if bottom < size[1] else size[1],
    )


def _fill_mirrored(inner: Image.Image, size: tuple[int, int], position: tuple[int, int]) -> Image.Image:
    canvas, (width, height) = Image.new("RGB", size), inner.size
    for row in range(-(position[1] // height) - 1, (size[1] - position[1]) // height + 1):
        for column in range(-(position[0] // width) - 1, (size[0] - position[0]) // width + 1):
            tile = ImageOps.mirror(inner) if column % 2 else inner
            tile = ImageOps.flip(tile) if row % 2 else tile
            canvas.paste(tile, (position[0] + column * width, position[1] + row * height))
    return canvas
