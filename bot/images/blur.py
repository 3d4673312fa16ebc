"""Blurring of pictures beyond recognition. Pure.

CPU-bound: async callers use a thread.
"""

from __future__ import annotations

from PIL import Image, ImageFilter

from bot.images.image_codec import ImageFormat, decode_image, encode_image, resize_image

BLUR_SIDE = 6  # pixels of the longer side before smoothing: too few to show any shape
MAX_SIDE = 512  # pixels of the longer side of the result: more would only add bytes
MAX_FRAME_PIXELS = 1024 * 1024  # pixels of a preview frame, blurred or not


def blur_picture(payload: bytes, image_format: ImageFormat = "PNG", *, max_pixels: int | None = None) -> bytes:
    """Return the picture as a few colours, at most `MAX_SIDE` pixels on its longer side. Raises `UnreadableImage`.

    It averages the picture to a few pixels before it smooths: a sharpening filter can undo a mere blur.
    """
    pixels = decode_image(payload) if max_pixels is None else decode_image(payload, max_pixels)
    smoothed = pixels.resize(_scale_down(pixels, BLUR_SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.0))
    return encode_image(resize_image(smoothed, _scale_down(pixels, MAX_SIDE)), image_format, 80)


def _scale_down(pixels: Image.Image, longer: int) -> tuple[int, int]:
    """Return the picture's size, scaled down so that its longer side is at most `longer`."""
    factor = min(1.0, longer / max(pixels.size))
    return max(1, round(pixels.width * factor)), max(1, round(pixels.height * factor))
