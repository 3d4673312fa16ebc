"""Picture files of one colour, as members upload them and workers paint them."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def encode_picture(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def make_png(width: int = 64, height: int = 64, colour: int | str = 128, form: str = "PNG") -> bytes:
    """A picture file of a colour by name, or of a shade of grey; a PNG unless another form is asked for."""
    return encode_picture(Image.new("RGB", (width, height), (colour,) * 3 if isinstance(colour, int) else colour), form)
