"""Masks as OpenAI's API takes them."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageOps


def make_transparent(picture: bytes, mask: bytes) -> bytes:
    """Return a PNG of the picture that is transparent where the mask is white. Both are PNGs of one size, our own."""
    with Image.open(BytesIO(picture)) as pixels, Image.open(BytesIO(mask)) as grey:
        masked = pixels.convert("RGB")
        masked.putalpha(ImageOps.invert(grey.convert("L")))
    buffer = BytesIO()
    masked.save(buffer, format="PNG")
    return buffer.getvalue()
