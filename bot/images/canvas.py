"""Canvases and masks for outpainting: zoom out, pan, square. Pure.

The picture is placed on a canvas smaller, moved or cut; the mask is white where the picture is not. The area around is
filled with the picture's mirrored and blurred edge, so that a model continues in its colours. The engine decides how
softly a mask ends. Inputs are PNGs from the upload decoder or a worker; what cannot be opened raises `Unreadable`.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image, ImageFilter, ImageOps

from bot.images.pixels import opened, saved

Direction = Literal["left", "right", "up", "down"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive
TOWARDS: dict[Direction, tuple[int, int]] = {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}
HALF = 0.5  # share of the picture that a pan moves off the canvas
BLUR = 0.06  # share of the shorter side
OVERLAP = 0.02  # share of the shorter side: the seam is repainted, too


def zoomed_out(png: bytes, factor: float) -> tuple[bytes, bytes]:
    """Return the picture `factor` times smaller in the middle of its canvas, and the mask. Raises ValueError."""
    if not 1 < factor <= 16:
        raise ValueError(f"{factor} does not zoom out")
    picture = opened(png)
    smaller = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    return _centred(picture.resize(smaller, Image.Resampling.LANCZOS), picture.size)


def panned(png: bytes, direction: Direction, fraction: float = HALF) -> tuple[bytes, bytes]:
    """Return the picture moved against the direction by a fraction of its side, and the mask. Raises ValueError."""
    if not 0 < fraction < 1:
        raise ValueError(f"a pan by {fraction} is not between 0 and 1")
    picture, (x, y) = opened(png), TOWARDS[direction]
    return _laid(picture, picture.size, (round(x * fraction * picture.width), round(y * fraction * picture.height)))


def squared(png: bytes) -> tuple[bytes, bytes]:
    """Return the picture in the middle of a square as wide as its longer side, and the mask (black for a square)."""
    picture = opened(png)
    side = max(picture.size)
    return _centred(picture, (side, side))


def outside(size: tuple[int, int], box: Box) -> bytes:
    """Return a PNG mask of that size, white outside the box."""
    mask = Image.new("L", size, 255)
    mask.paste(0, box)
    return saved(mask, "PNG")


def _centred(inner: Image.Image, size: tuple[int, int]) -> tuple[bytes, bytes]:
    return _laid(inner, size, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))


def _laid(inner: Image.Image, size: tuple[int, int], at: tuple[int, int]) -> tuple[bytes, bytes]:
    short = min(size)
    canvas = _mirrored(inner, size, at).filter(ImageFilter.GaussianBlur(BLUR * short))
    canvas.paste(inner, at)
    box = (at[0], at[1], at[0] + inner.width, at[1] + inner.height)
    return saved(canvas, "PNG"), outside(size, _inside(box, size, max(1, round(OVERLAP * short))))


def _inside(box: Box, size: tuple[int, int], seam: int) -> Box:
    """Return the part of the box on the canvas, less a seam on each side where new area begins."""
    left, top, right, bottom = box
    return (
        left + seam if left > 0 else 0, top + seam if top > 0 else 0,
        right - seam if right < size[0] else size[0], bottom - seam if bottom < size[1] else size[1],
    )  # fmt: skip


def _mirrored(inner: Image.Image, size: tuple[int, int], at: tuple[int, int]) -> Image.Image:
    """Return a canvas tiled with the picture and its mirror images."""
    canvas, (width, height) = Image.new("RGB", size), inner.size
    for row in range(-(at[1] // height) - 1, (size[1] - at[1]) // height + 1):
        for column in range(-(at[0] // width) - 1, (size[0] - at[0]) // width + 1):
            turned = ImageOps.mirror(inner) if column % 2 else inner
            turned = ImageOps.flip(turned) if row % 2 else turned
            canvas.paste(turned, (at[0] + column * width, at[1] + row * height))
    return canvas
