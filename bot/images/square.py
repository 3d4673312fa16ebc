"""A picture as a small square, for whoever only looks at it: its middle, at a bounded size. Pure, over plain PNGs.

CPU-heavy: async callers use a thread. What cannot be opened raises `Unreadable`.
"""

from __future__ import annotations

from PIL import Image, ImageOps

from bot.images.pixels import opened, saved

MOST_SIDE = 256  # pixels: even of pure noise, the PNG is then below what a request may carry


def square(png: bytes, side: int) -> bytes:
    """The middle of a picture as a PNG, `side` pixels wide and high, or `MOST_SIDE` if that is less."""
    least = min(side, MOST_SIDE)
    return saved(ImageOps.fit(opened(png), (least, least), Image.Resampling.LANCZOS), "PNG")
