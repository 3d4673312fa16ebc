"""Upscaling without new detail, and what every upscale does: check the size first, and note itself in the recipe."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from engine.contract.rejection import JobRejected
from engine.picture_files.decoding import FORMATS
from engine.picture_files.encoding import encode_png

LANCZOS = "Lanczos"
MAX_SIDE = 4096  # pixels of the output


def upscale_by_lanczos(source: bytes, factor: int) -> bytes:
    """Return the PNG `factor` times as wide and high; with its recipe and a note. Raises `JobRejected`."""
    picture, text = open_source(source, factor)
    size = (picture.width * factor, picture.height * factor)
    return encode_upscaled(picture.resize(size, Image.Resampling.LANCZOS), text, factor, LANCZOS)


def open_source(source: bytes, factor: int) -> tuple[Image.Image, str]:
    """Return the pixels as RGB, and the recipe text. Raises `JobRejected` where the result would be too large."""
    try:
        with Image.open(BytesIO(source), formats=FORMATS) as picture:
            width = picture.width * factor
            height = picture.height * factor
            if max(width, height) > MAX_SIDE:
                raise JobRejected(f"{width}×{height} is more than {MAX_SIDE} pixels a side.", "member")
            return picture.convert("RGB"), str(picture.info.get("parameters", ""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise JobRejected("The picture to upscale cannot be read.", "us") from error


def encode_upscaled(picture: Image.Image, text: str, factor: int, upscaler: str) -> bytes:
    """Return a PNG with the recipe text and a note of the upscale, as A1111's extras write it."""
    upscale_note = f"Postprocess upscale by: {factor}, Postprocess upscaler: {upscaler}"
    return encode_png(picture, f"{text}, {upscale_note}" if text else upscale_note)
