"""Square thumbnails: the middle of a picture at a bounded size. Pure; takes plain PNGs.

CPU-bound: async callers use a thread. Bytes that Pillow cannot open raise `UnreadableImage`.
"""

from __future__ import annotations

from PIL import Image, ImageOps

from bot.images.image_codec import decode_image, encode_image

MAX_SIDE = 256  # pixels: even a PNG of pure noise is then below the limit of a request


def crop_square(png: bytes, side: int) -> bytes:
    """Return the middle of a picture as a PNG, `side` pixels wide and high, at most `MAX_SIDE`."""
    bounded_side = min(side, MAX_SIDE)
    return encode_image(ImageOps.fit(decode_image(png), (bounded_side, bounded_side), Image.Resampling.LANCZOS), "PNG")
