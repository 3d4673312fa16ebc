"""Blurring of pictures beyond recognition. Pure.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from PIL import Image, ImageFilter

from bot.images.pixels import Form, opened, resized, saved

GRAIN = 6  # pixels of the longer side before smoothing: too few to show any shape
LARGEST = 512  # pixels of the longer side of the result: more would only add bytes
MAX_FRAME = 1024 * 1024  # pixels of a preview frame, blurred or not


def blurred(payload: bytes, form: Form = "PNG", *, max_pixels: int | None = None) -> bytes:
    """Return the picture as a few colours, at most `LARGEST` pixels on its longer side. Raises `Unreadable`.

    It is averaged to a few pixels before it is smoothed: a sharpening filter can undo a blur alone.
    """
    pixels = opened(payload) if max_pixels is None else opened(payload, max_pixels)
    grains = pixels.resize(_scaled(pixels, GRAIN), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.0))
    return saved(resized(grains, _scaled(pixels, LARGEST)), form, 80)


def _scaled(pixels: Image.Image, longer: int) -> tuple[int, int]:
    """Return the picture's size, scaled down so that its longer side is at most `longer`."""
    factor = min(1.0, longer / max(pixels.size))
    return max(1, round(pixels.width * factor)), max(1, round(pixels.height * factor))
