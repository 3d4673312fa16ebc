"""Square thumbnails: the middle of a picture at a bounded size. Pure; takes plain PNGs.

CPU-bound: async callers use a thread. What cannot be opened raises `Unreadable`.
"""

from __future__ import annotations

from PIL import Image, ImageOps

from bot.images.pixels import opened, saved

MOST_SIDE = 256  # pixels: even a PNG of pure noise is then below the limit of a request


def square(png: bytes, side: int) -> bytes:
    """Return the middle of a picture as a PNG, `side` pixels wide and high, at most `MOST_SIDE`."""
    least = min(side, MOST_SIDE)
    return saved(ImageOps.fit(opened(png), (least, least), Image.Resampling.LANCZOS), "PNG")
