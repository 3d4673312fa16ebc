"""A picture beyond recognition: a few colours where it was. Pure; knows pixels, and nothing of why one is hidden.

CPU-heavy: async callers use a thread.
"""

from __future__ import annotations

from PIL import Image, ImageFilter

from bot.images.pixels import Form, opened, resized, saved

GRAIN = 6  # what is left of the longer side: less than any shape needs to be told
LARGEST = 512  # pixels on the longer side of what comes out: more would only be more bytes of nothing
MAX_FRAME = 1024 * 1024  # pixels of a live frame, blurred or not


def blurred(payload: bytes, form: Form = "PNG", *, max_pixels: int | None = None) -> bytes:
    """The picture with nothing left but its size (at most `LARGEST`) and a few colours. Raises `Unreadable`.

    Averaged to a few pixels before it is smoothed: what a blur alone leaves in, a sharpening filter brings out again.
    """
    pixels = opened(payload) if max_pixels is None else opened(payload, max_pixels)
    grains = pixels.resize(_scaled(pixels, GRAIN), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.0))
    return saved(resized(grains, _scaled(pixels, LARGEST)), form, 80)


def _scaled(pixels: Image.Image, longer: int) -> tuple[int, int]:
    """The picture's size, brought down so that its longer side is at most `longer`."""
    factor = min(1.0, longer / max(pixels.size))
    return max(1, round(pixels.width * factor)), max(1, round(pixels.height * factor))
