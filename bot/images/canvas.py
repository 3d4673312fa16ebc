"""Canvases for what lies beyond a picture: it smaller, or moved, or cut, and a mask that is white where it is not.

Pure, over PNGs that the intake or a worker made. What is around is first filled with the picture's own edge, mirrored
and blurred: a model that begins from there goes on in its colours. How softly a mask ends is the engine's business.
CPU-heavy: async callers use a thread. Whatever cannot be opened raises `Unreadable`.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image, ImageFilter, ImageOps

from bot.images.pixels import opened, saved

Direction = Literal["left", "right", "up", "down"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two are outside
TOWARDS: dict[Direction, tuple[int, int]] = {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}
HALF = 0.5  # of the picture that a pan leaves behind
BLUR = 0.06  # of the shorter side
OVERLAP = 0.02  # of the shorter side: the seam is drawn anew, too


def zoomed_out(png: bytes, factor: float) -> tuple[bytes, bytes]:
    """The picture `factor` times smaller in the middle of its canvas, and the mask. Raises ValueError below 1."""
    if not 1 < factor <= 16:
        raise ValueError(f"{factor} does not zoom out")
    picture = opened(png)
    smaller = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    return _centred(picture.resize(smaller, Image.Resampling.LANCZOS), picture.size)


def panned(png: bytes, direction: Direction, fraction: float = HALF) -> tuple[bytes, bytes]:
    """The picture moved by a part of itself, away from where one looks, and the mask. Raises ValueError."""
    if not 0 < fraction < 1:
        raise ValueError(f"a pan by {fraction} shows nothing of both")
    picture, (x, y) = opened(png), TOWARDS[direction]
    return _laid(picture, picture.size, (round(x * fraction * picture.width), round(y * fraction * picture.height)))


def squared(png: bytes) -> tuple[bytes, bytes]:
    """The picture in the middle of a square as wide as its longer side, and the mask; black where it is a square."""
    picture = opened(png)
    side = max(picture.size)
    return _centred(picture, (side, side))


def outside(size: tuple[int, int], box: Box) -> bytes:
    """A mask of that size, white outside the box, as PNG."""
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
    """The part of the box that is on the canvas, less a seam on the sides where something new begins."""
    left, top, right, bottom = box
    return (
        left + seam if left > 0 else 0, top + seam if top > 0 else 0,
        right - seam if right < size[0] else size[0], bottom - seam if bottom < size[1] else size[1],
    )  # fmt: skip


def _mirrored(inner: Image.Image, size: tuple[int, int], at: tuple[int, int]) -> Image.Image:
    """The plane paved with the picture and its mirror images."""
    canvas, (width, height) = Image.new("RGB", size), inner.size
    for row in range(-(at[1] // height) - 1, (size[1] - at[1]) // height + 1):
        for column in range(-(at[0] // width) - 1, (size[0] - at[0]) // width + 1):
            turned = ImageOps.mirror(inner) if column % 2 else inner
            turned = ImageOps.flip(turned) if row % 2 else turned
            canvas.paste(turned, (at[0] + column * width, at[1] + row * height))
    return canvas
