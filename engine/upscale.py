"""Enlarging a finished picture. Pillow only; refuses what would not fit in memory before it is decoded."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from engine.encode import png
from engine.unfit import Unfit

MAX_SIDE = 4096


def enlarge(source: bytes, factor: int, method: str = "lanczos") -> bytes:
    """The PNG `factor` times as wide and high, its recipe kept and the enlargement noted. Raises `Unfit`."""
    if method != "lanczos":
        raise Unfit(f"This worker cannot enlarge by {method}.", "worker")
    try:
        with Image.open(BytesIO(source), formats=("PNG", "JPEG", "WEBP")) as picture:
            width, height = picture.width * factor, picture.height * factor
            if max(width, height) > MAX_SIDE:
                raise Unfit(f"{width}×{height} is more than {MAX_SIDE} pixels a side.", "member")
            text = str(picture.info.get("parameters", ""))
            large = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unfit("The picture to enlarge cannot be read.", "us") from error
    noted = f"Upscale: {factor}x Lanczos"
    return png(large, f"{text}, {noted}" if text else noted)
